// Ranks as threads of one process: each copies straight from the others' buffers.
#pragma once

#include <memory>

#include "engine/comm/communicator.h"
#include "engine/comm/local_group.h"
#include "engine/comm/transport.h"

namespace strata::engine {

// The k-th call of every rank of `group` belongs together: it returns when all ranks have made it,
// and throws CommError when they do not within the timeout.
std::unique_ptr<Transport> make_local_transport(std::shared_ptr<LocalGroup> group, int rank,
                                                const CommunicatorOptions& options);

}  // namespace strata::engine
