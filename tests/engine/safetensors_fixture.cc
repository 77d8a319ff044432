#include "tests/engine/safetensors_fixture.h"

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "kernels/ops/numeric.h"

namespace strata::testing_support {
namespace {

// An element as it lies in the file.
template <typename Stored>
Stored load(const char* bytes, size_t index) {
  Stored value;
  std::memcpy(&value, bytes + index * sizeof(value), sizeof(value));
  return value;
}

template <typename Stored, typename Widen>
std::vector<double> widened(const char* bytes, size_t length_bytes, const Widen& widen) {
  std::vector<double> values(length_bytes / sizeof(Stored));
  for (size_t i = 0; i < values.size(); ++i) values[i] = widen(load<Stored>(bytes, i));
  return values;
}

}  // namespace

SafetensorsFixture::SafetensorsFixture(const std::string& path) : path_(path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (!file || bytes.size() < sizeof(uint64_t)) {
    throw std::runtime_error(path + ": cannot be read");
  }
  const auto header_bytes = static_cast<size_t>(load<uint64_t>(bytes.data(), 0));
  header_ = nlohmann::json::parse(bytes.substr(sizeof(uint64_t), header_bytes));
  data_ = bytes.substr(sizeof(uint64_t) + header_bytes);
}

const nlohmann::json& SafetensorsFixture::entry(const std::string& name) const {
  if (!header_.contains(name)) throw std::runtime_error(path_ + ": no tensor '" + name + "'");
  return header_.at(name);
}

std::vector<int64_t> SafetensorsFixture::shape(const std::string& name) const {
  return entry(name).at("shape").get<std::vector<int64_t>>();
}

std::vector<double> SafetensorsFixture::values(const std::string& name) const {
  const auto& tensor = entry(name);
  const auto begin = tensor.at("data_offsets").at(0).get<size_t>();
  const auto length = tensor.at("data_offsets").at(1).get<size_t>() - begin;
  const char* bytes = data_.data() + begin;
  const auto dtype = tensor.at("dtype").get<std::string>();
  if (begin + length > data_.size()) throw std::runtime_error(path_ + ": is cut short");
  const auto exactly = [](auto value) { return static_cast<double>(value); };
  if (dtype == "F64") return widened<double>(bytes, length, exactly);
  if (dtype == "F32") return widened<float>(bytes, length, exactly);
  if (dtype == "I32") return widened<int32_t>(bytes, length, exactly);
  if (dtype == "F16") return widened<uint16_t>(bytes, length, ops::fp16_to_float);
  if (dtype == "BF16") return widened<uint16_t>(bytes, length, ops::bf16_to_float);
  throw std::runtime_error(path_ + ": '" + name + "' is of dtype " + dtype);
}

std::vector<std::string> SafetensorsFixture::names(const std::string& prefix) const {
  std::vector<std::string> result;
  for (const auto& [name, tensor] : header_.items()) {
    if (name.starts_with(prefix)) result.push_back(name.substr(prefix.size()));
  }
  return result;
}

nlohmann::json SafetensorsFixture::about() const {
  return nlohmann::json::parse(header_.at("__metadata__").at("about").get<std::string>());
}

}  // namespace strata::testing_support
