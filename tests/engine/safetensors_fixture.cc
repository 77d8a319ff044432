#include "tests/engine/safetensors_fixture.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

#include "kernels/ops/numeric.h"
#include "strata/error.h"

namespace strata::testing_support {
namespace {

using safetensors::ElementType;

template <typename Stored, typename Widen>
std::vector<double> widened(std::span<const std::byte> bytes, const Widen& widen) {
  std::vector<double> values(bytes.size() / sizeof(Stored));
  for (size_t i = 0; i < values.size(); ++i) {
    Stored value;
    std::memcpy(&value, bytes.data() + i * sizeof(value), sizeof(value));
    values[i] = widen(value);
  }
  return values;
}

}  // namespace

SafetensorsFixture::SafetensorsFixture(const std::string& path)
    : file_(safetensors::File::open(path)) {}

std::vector<int64_t> SafetensorsFixture::shape(const std::string& name) const {
  return file_.tensor(name).shape;
}

std::vector<double> SafetensorsFixture::values(const std::string& name) const {
  const safetensors::Tensor& tensor = file_.tensor(name);
  std::vector<std::byte> bytes(tensor.bytes);
  file_.read(tensor, 0, bytes);
  const auto exactly = [](auto value) { return static_cast<double>(value); };
  switch (tensor.type) {
    case ElementType::f64:
      return widened<double>(bytes, exactly);
    case ElementType::f32:
      return widened<float>(bytes, exactly);
    case ElementType::i32:
      return widened<int32_t>(bytes, exactly);
    case ElementType::f16:
      return widened<uint16_t>(bytes, ops::fp16_to_float);
    case ElementType::bf16:
      return widened<uint16_t>(bytes, ops::bf16_to_float);
    default:
      throw Error(file_.path() + ": '" + name + "' is of a dtype that no test reads");
  }
}

std::vector<std::string> SafetensorsFixture::names(const std::string& prefix) const {
  std::vector<std::string> result;
  for (const safetensors::Tensor& tensor : file_.header().tensors()) {
    if (tensor.name.starts_with(prefix)) result.push_back(tensor.name.substr(prefix.size()));
  }
  std::sort(result.begin(), result.end());
  return result;
}

nlohmann::json SafetensorsFixture::about() const {
  return nlohmann::json::parse(file_.header().metadata().at("about"));
}

}  // namespace strata::testing_support
