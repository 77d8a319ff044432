// What a checkpoint is made of. A checkpoint is a directory:
//
//   manifest.json            written last: without it there is no checkpoint
//   master.safetensors       fp32 master weights of trainable parameters, under the model's names
//   exp_avg.safetensors      the moments, as the run kept them: F32, BF16, or for int8 U8 codes and
//   exp_avg_sq.safetensors   "NAME.scale", F32, one for each 256 elements
//   frozen.safetensors       frozen parameters, in the model's dtype
//
// Tensors are whole, whatever number of ranks wrote them: a checkpoint has no world size, stage or
// placement. What a rank wrote at a time is a piece, and has a hash.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/checkpoint/run_state.h"
#include "strata/codec.h"
#include "strata/tier.h"

namespace strata::engine {

inline constexpr const char* kManifestName = "manifest.json";
// Of a checkpoint's directory until it is complete.
inline constexpr const char* kUnfinishedSuffix = ".unfinished";

struct Piece {
  uint64_t first = 0;  // byte of the tensor
  uint64_t bytes = 0;
  uint64_t hash = 0;  // XXH3, 64 bits

  bool operator==(const Piece&) const = default;
};

// By tensor, in order; they are all of it, without overlap.
using TensorPieces = std::map<std::string, std::vector<Piece>>;

struct Manifest {
  RunState run;
  std::string model = {};         // Model::description
  std::string model_config = {};  // Model::config, JSON; empty: it has none
  std::string config = {};        // Config::text
  Codec moment_codec = Codec::fp32;
  std::map<std::string, TensorPieces> pieces = {};  // by file name
};

// "master.safetensors"; of master, exp_avg, exp_avg_sq and frozen.
std::string checkpoint_file(StateKind kind);
// Of an int8 tensor's scales.
std::string scale_name(const std::string& tensor);

// Throws CorruptionError where pieces leave gaps or overlap.
std::string to_json(const Manifest& manifest);
// Reads a checkpoint's manifest. Throws ConfigError where there is none, CorruptionError, naming
// file and what is wrong, for one that was not written so. Takes memory in proportion to the text.
Manifest read_manifest(const std::string& directory);
Manifest manifest_from_json(const std::string& text, const std::string& source);

}  // namespace strata::engine
