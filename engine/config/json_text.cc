#include "engine/config/json_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <system_error>
#include <vector>

#include "strata/error.h"

namespace strata {
namespace {

// Follows the parser through a text and refuses a key that its object already has, and values that
// nest deeper than recursion over them should go.
class StructureCheck {
 public:
  explicit StructureCheck(const std::string& source) : source_(source) {}

  bool operator()(int depth, Json::parse_event_t event, const Json& parsed) {
    if (depth > kMostLevels) {
      throw ConfigError(fmt::format("{}: values nest in more than {} levels: write them flatter",
                                    source_, kMostLevels));
    }
    if (event == Json::parse_event_t::object_start) objects_.emplace_back();
    if (event == Json::parse_event_t::object_end) objects_.pop_back();
    if (event == Json::parse_event_t::key) enter(parsed.get_ref<const std::string&>());
    return true;
  }

 private:
  static constexpr int kMostLevels = 100;

  struct Object {
    std::set<std::string> keys;
    std::string current;
  };

  void enter(const std::string& key) {
    Object& object = objects_.back();
    object.current = key;
    if (object.keys.insert(key).second) return;
    std::string path;
    for (const Object& outer : objects_) path += (path.empty() ? "" : ".") + outer.current;
    throw ConfigError(fmt::format("{}: \"{}\" appears twice: keep one of them", source_, path));
  }

  const std::string& source_;
  std::vector<Object> objects_;
};

// True when the literal that stopped the parser at `at` is a number that JSON does not have.
bool is_not_finite_literal(std::string_view text, size_t at) {
  for (const std::string_view literal : {"NaN", "Infinity", "nan", "inf"}) {
    // The parser stops at the first letter, or at the second of what began like "null".
    for (const size_t back : {0, 1}) {
      if (at >= back && at < text.size() && text.substr(at - back).starts_with(literal))
        return true;
    }
  }
  return false;
}

// The parser's own words after its position: "syntax error while parsing ... - ...".
std::string reason_of(const std::string& what) {
  const size_t column = what.find("column ");
  const size_t colon = column == std::string::npos ? column : what.find(": ", column);
  return colon == std::string::npos ? what : what.substr(colon + 2);
}

[[noreturn]] void throw_at(std::string_view text, size_t at, const std::string& source,
                           const std::string& what) {
  const std::string_view before = text.substr(0, std::min(at, text.size()));
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const size_t column = before.size() - (before.rfind('\n') + 1) + 1;  // npos + 1 is 0
  const std::string reason =
      is_not_finite_literal(text, at)
          ? "NaN and Infinity are not numbers in JSON: write a finite number"
          : fmt::format("this is not valid JSON ({}): correct it", reason_of(what));
  throw ConfigError(fmt::format("{}: line {}, column {}: {}", source, line, column, reason));
}

}  // namespace

Json parse_json_object(std::string_view text, const std::string& source) {
  Json root;
  try {
    root = Json::parse(text.begin(), text.end(), StructureCheck(source),
                       /*allow_exceptions=*/true, /*ignore_comments=*/true);
  } catch (const Json::parse_error& error) {
    throw_at(text, error.byte > 0 ? error.byte - 1 : 0, source, error.what());
  } catch (const Json::out_of_range&) {
    throw ConfigError(fmt::format(
        "{}: a number is too large for a double: write a finite number in its place", source));
  }
  if (!root.is_object()) {
    throw ConfigError(
        fmt::format("{}: the text must be a JSON object, found {}: put the keys between {{ and }}",
                    source, describe(root)));
  }
  return root;
}

std::string read_text_file(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    throw ConfigError(fmt::format("{}: this is a directory: name a file", path));
  }
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file.is_open() || file.bad()) {
    throw ConfigError(fmt::format("{}: cannot be read ({}): name a file that can", path,
                                  std::strerror(errno != 0 ? errno : EIO)));
  }
  return text;
}

std::string describe(const Json& value) {
  if (value.is_object()) return "an object";
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  constexpr size_t kShort = 40;
  return value.is_array() && text.size() > kShort ? "a list" : text;
}

}  // namespace strata
