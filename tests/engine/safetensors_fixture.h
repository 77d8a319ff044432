// Tensors that PyTorch wrote for tests; tests/golden/README.md says which.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace strata::testing_support {

// One safetensors file, read whole. Immutable.
class SafetensorsFixture {
 public:
  // Throws std::runtime_error when the file cannot be read.
  explicit SafetensorsFixture(const std::string& path);

  // A tensor's elements, of whatever dtype (F64, F32, BF16, I32), exactly. Throws
  // std::runtime_error naming what is missing or unknown.
  std::vector<double> values(const std::string& name) const;

  std::vector<int64_t> shape(const std::string& name) const;

  // The names that start with `prefix`, without it, sorted.
  std::vector<std::string> names(const std::string& prefix) const;

  // The JSON that the scripts of tests/golden leave in the metadata.
  nlohmann::json about() const;

 private:
  const nlohmann::json& entry(const std::string& name) const;

  std::string path_;
  nlohmann::json header_;
  std::string data_;
};

}  // namespace strata::testing_support
