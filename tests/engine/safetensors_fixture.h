// Tensors that PyTorch wrote for tests; tests/golden/README.md says which.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/checkpoint/safetensors_file.h"

namespace strata::testing_support {

// One safetensors file. Everything throws strata::Error for what is missing or unreadable.
class SafetensorsFixture {
 public:
  explicit SafetensorsFixture(const std::string& path);

  // A tensor's elements, of whatever dtype (F64, F32, F16, BF16, I32), exactly.
  std::vector<double> values(const std::string& name) const;

  std::vector<int64_t> shape(const std::string& name) const;

  // The names that start with `prefix`, without it, sorted.
  std::vector<std::string> names(const std::string& prefix) const;

  // The JSON that the scripts of tests/golden leave in the metadata.
  nlohmann::json about() const;

 private:
  safetensors::File file_;
};

}  // namespace strata::testing_support
