// Ranks as processes without MPI: a socket between every two for the bytes, and one for the watch
// over the others' lives. They find each other at an address of rank 0 (rendezvous.h).
#pragma once

#include <memory>

#include "engine/comm/transport.h"
#include "strata/world.h"

namespace strata::engine {

struct TcpTransportOptions {
  double timeout_s = 600;
};

// Collective over all ranks of `world`, which name the same `world.master`, one after the other
// within a process. Throws ConfigError where the address is not to be used and where processes
// disagree on who they are, CommError when ranks do not come within the timeout.
std::unique_ptr<Transport> make_tcp_transport(const World& world,
                                              const TcpTransportOptions& options);

}  // namespace strata::engine
