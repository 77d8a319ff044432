// The text of a safetensors header, read without a tree of it in memory.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/checkpoint/safetensors.h"
#include "strata/error.h"

namespace strata::safetensors {

std::optional<ElementType> find_element_type(std::string_view name);
// Nothing where they pass 2^63 - 1, or a dimension is negative.
std::optional<uint64_t> bytes_of(ElementType type, std::span<const int64_t> shape);

// Throws what is wrong with a file.
class Damage {
 public:
  explicit Damage(const std::string& path) : path_(path) {}

  template <typename... Values>
  [[noreturn]] void operator()(fmt::format_string<Values...> what, Values&&... values) const {
    raise(fmt::format(what, std::forward<Values>(values)...));
  }
  template <typename... Values>
  [[noreturn]] void in_tensor(std::string_view name, fmt::format_string<Values...> what,
                              Values&&... values) const {
    // A damaged name may be of any length.
    constexpr size_t kShown = 100;
    raise(fmt::format("tensor '{}'{} {}", name.substr(0, kShown), name.size() > kShown ? "..." : "",
                      fmt::format(what, std::forward<Values>(values)...)));
  }

 private:
  [[noreturn]] void raise(const std::string& what) const {
    throw CorruptionError(
        fmt::format("{}: {}, so it is damaged or not a safetensors file", path_, what));
  }

  const std::string& path_;
};

// Appends the tensors in the order of the text, each with a size that fits its dtype and shape.
void parse_text(std::string_view text, const Damage& damage, std::vector<Tensor>& tensors,
                Metadata& metadata);

}  // namespace strata::safetensors
