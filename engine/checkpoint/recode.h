// A checkpoint written anew, with its moments in another codec.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "engine/checkpoint/checkpoint_reader.h"

namespace strata::engine {

// Throws CorruptionError unless every trainable parameter's moments are there, in the manifest's
// codec, and nothing else's: what hashes of the contents do not show.
void check_moments(const CheckpointReader& checkpoint);

// Writes a checkpoint at `path`, where nothing may be. Everything that is read is checked against
// its hash. Moments are kept exactly where the codec holds them, and else rounded as a run would
// that loads them. Calls `progress` with bytes as they are written. Throws ConfigError,
// CorruptionError or IoError and leaves nothing then.
struct RecodeOptions {
  std::string path;
  Codec moments = Codec::fp32;  // fp32, bf16 or int8
  std::function<void(uint64_t bytes)> progress = [](uint64_t) {};
};
void recode_checkpoint(CheckpointReader& from, const RecodeOptions& options);

}  // namespace strata::engine
