// The known key that a mistyped one most likely meant.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace strata::options {

// `path` and `known` are dotted. Prefers a key of the same section, then the same last word in
// another section; nothing when none is near.
std::optional<std::string> nearest_path(const std::string& path,
                                        const std::vector<std::string>& known);

}  // namespace strata::options
