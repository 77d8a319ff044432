// The weights in a checkpoint, as whole parameters.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/checkpoint/checkpoint_reader.h"
#include "strata/model.h"

namespace strata::engine {

// The model that a checkpoint's description makes, in the tiles it was trained in. Throws
// ConfigError where it is not a GPT-2 with a description.
struct Gpt2InCheckpoint {
  models::Gpt2Config config;
  int64_t tiles = 1;
};
Gpt2InCheckpoint gpt2_of(const CheckpointReader& checkpoint);

// Master weights, or frozen parameters, of a model's parameters by the names they have without
// tiles. One thread's; the checkpoint must outlive it.
class CheckpointValues {
 public:
  // Throws ConfigError naming a parameter of `model` that the checkpoint lacks, or has in another
  // shape.
  CheckpointValues(CheckpointReader& checkpoint, const Model& model);

  // As a ParameterReader. What tiles divide is put together in memory, one parameter at a time.
  void read(std::string_view name, int64_t first, std::span<float> out);

 private:
  using Slices = std::vector<Parameter>;
  void check(const Parameter& parameter) const;
  // The parameter as the checkpoint has it, whole or a slice.
  void read_stored(const Parameter& parameter, int64_t first, std::span<float> out);
  void put_together(const std::string& name, const Slices& slices);

  CheckpointReader& checkpoint_;
  std::map<std::string, Slices, std::less<>> parameters_;
  std::string together_;  // the parameter in values_
  std::vector<float> values_;
};

}  // namespace strata::engine
