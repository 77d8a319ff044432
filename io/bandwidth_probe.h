// How fast a directory's disk reads and writes, as far as a fraction of a second can tell.
#pragma once

#include <cstdint>
#include <string>

#include "io/block_file.h"
#include "io/io_engine.h"

namespace strata::io {

// Writes and reads a scratch file of at most `bytes` (and 64 MiB), opened as `options` say, and
// returns bytes a second of an equal mix of both. Takes less than half a second, plus the last
// transfers of a disk slower than 100 MiB a second. `engine` has nothing under way; this thread is
// its owner. Throws IoError.
double probe_bandwidth(IoEngine& engine, const std::string& directory, uint64_t bytes,
                       const BlockFileOptions& options);

}  // namespace strata::io
