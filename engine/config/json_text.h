// JSON as people write it for DeepSpeed and Hugging Face: comments are allowed, a key that appears
// twice is an error, and errors name the source with line and column.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace strata {

// Keeps keys in the order of the text, so that errors come in that order too.
using Json = nlohmann::ordered_json;

// Parses an object, of no more than 100 levels. `source` names the text in errors. Throws
// ConfigError.
Json parse_json_object(std::string_view text, const std::string& source);

// The contents of a file. Throws ConfigError naming the path and the reason.
std::string read_text_file(const std::string& path);

// A value as errors show it: `"eight"`, `1.5`, `[1,2]`, `an object`; long lists are `a list`.
std::string describe(const Json& value);

}  // namespace strata
