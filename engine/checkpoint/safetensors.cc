#include "engine/checkpoint/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <tuple>
#include <utility>

#include "engine/checkpoint/safetensors_parser.h"
#include "strata/error.h"
#include "strata/grain.h"

namespace strata::safetensors {
namespace {

static_assert(std::endian::native == std::endian::little, "elements are stored as they are");

struct TypeRow {
  std::string_view name;
  uint64_t bytes;
};

// In the order of ElementType.
constexpr std::array<TypeRow, 15> kTypes = {{{"BOOL", 1},
                                             {"U8", 1},
                                             {"I8", 1},
                                             {"F8_E4M3", 1},
                                             {"F8_E5M2", 1},
                                             {"U16", 2},
                                             {"I16", 2},
                                             {"F16", 2},
                                             {"BF16", 2},
                                             {"U32", 4},
                                             {"I32", 4},
                                             {"F32", 4},
                                             {"U64", 8},
                                             {"I64", 8},
                                             {"F64", 8}}};

// A JSON string. Throws ConfigError.
std::string quoted(const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::type_error&) {
    throw ConfigError("a tensor's name or its file's metadata is not UTF-8: write it as such");
  }
}

}  // namespace

uint64_t size_bytes(ElementType type) { return kTypes[static_cast<size_t>(type)].bytes; }
std::string_view name(ElementType type) { return kTypes[static_cast<size_t>(type)].name; }

std::optional<ElementType> find_element_type(std::string_view name) {
  for (size_t i = 0; i < kTypes.size(); ++i) {
    if (kTypes[i].name == name) return static_cast<ElementType>(i);
  }
  return std::nullopt;
}

ElementType element_type(DType dtype) {
  constexpr std::array<ElementType, 4> types = {ElementType::f32, ElementType::bf16,
                                                ElementType::f16, ElementType::i32};
  return types[static_cast<size_t>(dtype)];
}

std::optional<uint64_t> bytes_of(ElementType type, std::span<const int64_t> shape) {
  constexpr uint64_t kMost = std::numeric_limits<int64_t>::max();
  uint64_t bytes = size_bytes(type);
  for (const int64_t dim : shape) {
    const auto count = static_cast<uint64_t>(dim);
    if (dim < 0 || (count != 0 && bytes > kMost / count)) return std::nullopt;
    bytes *= count;
  }
  return bytes;
}

Header::Header(std::vector<Tensor> tensors, Metadata metadata)
    : tensors_(std::move(tensors)), metadata_(std::move(metadata)) {
  std::stable_sort(tensors_.begin(), tensors_.end(), [](const Tensor& a, const Tensor& b) {
    return size_bytes(a.type) > size_bytes(b.type);
  });
  uint64_t end = 0;
  for (Tensor& tensor : tensors_) {
    const std::optional<uint64_t> bytes = bytes_of(tensor.type, tensor.shape);
    if (!bytes || *bytes > std::numeric_limits<int64_t>::max() - end) {
      throw ConfigError(fmt::format(
          "'{}' of shape [{}] is larger than any file: give tensors shapes that fit into one",
          tensor.name, fmt::join(tensor.shape, ", ")));
    }
    tensor.begin = std::exchange(end, end + *bytes);
    tensor.bytes = *bytes;
  }
  if (const std::string* twice = index_names()) {
    throw ConfigError(fmt::format("a file cannot hold two tensors named '{}': rename one", *twice));
  }
  data_begin_ = static_cast<uint64_t>(
      round_up(static_cast<int64_t>(sizeof(uint64_t) + text().size()), kDataAlignment));
  if (data_begin_ > kMaxBytes) {
    throw ConfigError(fmt::format(
        "{} tensors need a header of {} bytes, and safetensors has at most {}: divide them among "
        "several files",
        tensors_.size(), data_begin_, kMaxBytes));
  }
}

const std::string* Header::index_names() {
  by_name_.resize(tensors_.size());
  std::iota(by_name_.begin(), by_name_.end(), 0u);
  const auto name_at = [&](uint32_t i) -> const std::string& { return tensors_[i].name; };
  std::sort(by_name_.begin(), by_name_.end(),
            [&](uint32_t a, uint32_t b) { return name_at(a) < name_at(b); });
  const auto twice =
      std::adjacent_find(by_name_.begin(), by_name_.end(),
                         [&](uint32_t a, uint32_t b) { return name_at(a) == name_at(b); });
  return twice == by_name_.end() ? nullptr : &name_at(*twice);
}

const Tensor* Header::find(std::string_view name) const {
  const auto at = std::lower_bound(
      by_name_.begin(), by_name_.end(), name,
      [&](uint32_t i, std::string_view wanted) { return tensors_[i].name < wanted; });
  return at == by_name_.end() || tensors_[*at].name != name ? nullptr : &tensors_[*at];
}

std::string Header::text() const {
  std::string text = "{";
  const auto separate = [&] { text += text.size() == 1 ? "" : ","; };
  if (!metadata_.empty()) {
    text += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata_) {
      text += fmt::format("{}{}:{}", text.back() == '{' ? "" : ",", quoted(key), quoted(value));
    }
    text += "}";
  }
  for (const Tensor& tensor : tensors_) {
    separate();
    text += fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                        quoted(tensor.name), safetensors::name(tensor.type),
                        fmt::join(tensor.shape, ","), tensor.begin, tensor.begin + tensor.bytes);
  }
  return text + "}";
}

std::string Header::serialize() const {
  const uint64_t length = data_begin_ - sizeof(uint64_t);
  std::string start(sizeof(length), '\0');
  std::memcpy(start.data(), &length, sizeof(length));
  start += text();
  start.resize(data_begin_, ' ');
  return start;
}

uint64_t Header::file_bytes() const {
  return data_begin_ + (tensors_.empty() ? 0 : tensors_.back().begin + tensors_.back().bytes);
}

namespace {

// Tensors sorted by place must follow each other from 0 to the end.
void check_coverage(std::span<const Tensor> tensors, uint64_t data_bytes, const Damage& damage) {
  uint64_t end = 0;
  for (const Tensor& tensor : tensors) {
    if (tensor.begin < end) {
      damage.in_tensor(tensor.name, "overlaps the one before it at byte {}", tensor.begin);
    }
    if (tensor.begin > end) {
      damage.in_tensor(tensor.name, "leaves a gap before it, from byte {} to {}", end,
                       tensor.begin);
    }
    end += tensor.bytes;
    if (end > data_bytes) {
      damage.in_tensor(tensor.name, "ends at byte {} of data which has {}", end, data_bytes);
    }
  }
  if (end < data_bytes) damage("{} bytes behind the last tensor belong to none", data_bytes - end);
}

}  // namespace

uint64_t Header::data_begin(std::span<const std::byte> start, uint64_t file_bytes,
                            const std::string& path) {
  const Damage damage(path);
  uint64_t length = 0;
  if (file_bytes < sizeof(length) || start.size() < sizeof(length)) {
    damage("it has {} bytes, which are no header", file_bytes);
  }
  std::memcpy(&length, start.data(), sizeof(length));
  if (length > kMaxBytes) {
    damage("its header would take {} bytes, and at most {} are allowed", length, kMaxBytes);
  }
  if (length > file_bytes - sizeof(length)) {
    damage("its header would take {} bytes of a file of {}", length, file_bytes);
  }
  return sizeof(length) + length;
}

Header Header::parse(std::span<const std::byte> start, uint64_t file_bytes,
                     const std::string& path) {
  Header header;
  header.data_begin_ = data_begin(start, file_bytes, path);
  require(start.size() >= header.data_begin_, "Header::parse needs the whole header");
  const Damage damage(path);
  const std::string_view text(reinterpret_cast<const char*>(start.data()) + sizeof(uint64_t),
                              header.data_begin_ - sizeof(uint64_t));
  parse_text(text, damage, header.tensors_, header.metadata_);
  std::sort(header.tensors_.begin(), header.tensors_.end(), [](const Tensor& a, const Tensor& b) {
    return std::tie(a.begin, a.bytes, a.name) < std::tie(b.begin, b.bytes, b.name);
  });
  check_coverage(header.tensors_, file_bytes - header.data_begin_, damage);
  if (const std::string* twice = header.index_names()) {
    damage.in_tensor(*twice, "appears twice");
  }
  return header;
}

}  // namespace strata::safetensors
