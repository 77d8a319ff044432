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

struct RecodeOptions {
  std::string path;             // of the new one; nothing may be there
  Codec moments = Codec::fp32;  // fp32, bf16 or int8
  std::function<void(uint64_t bytes)> progress = [](uint64_t) {};  // as they are read
};
// Writes a checkpoint. Everything that is read is checked against its hash. Moments stay exact
// where the codec holds them; others are rounded stochastically, the same way every time. Throws
// ConfigError, CorruptionError or IoError and leaves nothing then.
void recode_checkpoint(CheckpointReader& from, const RecodeOptions& options);

}  // namespace strata::engine
