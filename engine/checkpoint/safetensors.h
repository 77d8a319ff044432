// safetensors: tensors in one file behind a JSON header, as Hugging Face's library reads and writes
// them (https://github.com/huggingface/safetensors, "Format").
//
//   8 bytes    the length of what follows, little endian
//   header     {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...,
//               "__metadata__": {"KEY": "TEXT", ...}}, and spaces
//   the rest   the tensors' elements, little endian, row-major, without gaps
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "strata/dtype.h"

namespace strata::safetensors {

enum class ElementType : uint8_t {
  boolean,
  u8,
  i8,
  f8_e4m3,
  f8_e5m2,
  u16,
  i16,
  f16,
  bf16,
  u32,
  i32,
  f32,
  u64,
  i64,
  f64,
};
uint64_t size_bytes(ElementType type);
std::string_view name(ElementType type);  // as in the header: "F32"
ElementType element_type(DType dtype);

struct Tensor {
  std::string name;
  ElementType type = ElementType::f32;
  std::vector<int64_t> shape = {};
  uint64_t begin = 0;  // bytes from the start of the data
  uint64_t bytes = 0;

  int64_t numel() const { return static_cast<int64_t>(bytes / size_bytes(type)); }
};

using Metadata = std::map<std::string, std::string>;

// What is said before the data. Immutable.
class Header {
 public:
  // The format's limit, as its reference has it.
  static constexpr uint64_t kMaxBytes = 100'000'000;
  // The data of files that we write begins at a multiple of this.
  static constexpr uint64_t kDataAlignment = 4096;

  // Of a file to be written: places the tensors, in the order given but those of larger elements
  // first, so that each is aligned. Throws ConfigError for a name that comes twice or is no UTF-8,
  // and for sizes that no file has.
  explicit Header(std::vector<Tensor> tensors, Metadata metadata = {});

  // Bytes before the data, as a file's first eight say. Throws CorruptionError naming `path`,
  // unless a file of `file_bytes` can have so many.
  static uint64_t data_begin(std::span<const std::byte> start, uint64_t file_bytes,
                             const std::string& path);
  // Of a file of `file_bytes` which begins with `start`: data_begin() bytes or more. Throws
  // CorruptionError naming `path` and the tensor, unless the header is well formed and its tensors
  // cover the rest of the file without gap or overlap. Takes memory in proportion to the header.
  static Header parse(std::span<const std::byte> start, uint64_t file_bytes,
                      const std::string& path);

  // In the order in which they lie.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Tensor* find(std::string_view name) const;  // null: there is none
  const Metadata& metadata() const { return metadata_; }

  // What a file with it begins with: length, text and padding.
  std::string serialize() const;
  uint64_t data_begin() const { return data_begin_; }  // bytes from the start of the file
  uint64_t file_bytes() const;

 private:
  Header() = default;
  // Returns a name that comes twice.
  const std::string* index_names();
  std::string text() const;

  std::vector<Tensor> tensors_;
  std::vector<uint32_t> by_name_;  // indices of tensors_
  Metadata metadata_;
  uint64_t data_begin_ = 0;
};

}  // namespace strata::safetensors
