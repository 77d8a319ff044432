// How moments lie in a checkpoint: as the run kept them, but that int8's codes and scales, which
// take turns in memory (strata/codec.h), are two tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/checkpoint/checkpoint_reader.h"
#include "engine/checkpoint/checkpoint_writer.h"

namespace strata::engine {

// Those of a parameter of this name and shape.
std::vector<safetensors::Tensor> moment_tensors(const std::string& name, std::vector<int64_t> shape,
                                                Codec codec);

// A part of a parameter's moments, and where it is in memory: whole blocks of kCodecBlockNumel, but
// for a parameter's last one.
struct MomentPart {
  std::string file;
  std::string parameter;
  int64_t first = 0;  // element of the parameter
  int64_t count = 0;
  Codec codec = Codec::fp32;
  std::byte* stored = nullptr;   // whole grains
  int64_t at = 0;                // element of `stored`
  std::byte* scratch = nullptr;  // `count` bytes, and 4 a block
};
void write_moments(CheckpointWriter& checkpoint, const MomentPart& part);
// Throws CorruptionError as CheckpointReader::read().
void read_moments(CheckpointReader& checkpoint, const MomentPart& part);

}  // namespace strata::engine
