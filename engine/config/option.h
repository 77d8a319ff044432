// Options: a table row per key makes the parser, every error and the reference.
//
// A table is built around the object that it fills: values capture references to its fields, and
// defaults in the reference are what those fields held. So a table lives no longer than its object.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/config/json_text.h"

namespace strata::options {

// Takes a value. Returns an empty string, or what is wrong with the value and what to change, to
// follow the key's name in a sentence.
using Take = std::function<std::string(const Json& value)>;

// What a value may be and where it lands.
struct Value {
  std::string expects;   // "an integer of at least 1"
  std::string fallback;  // the default as JSON; empty: none
  Take take;
  bool takes_auto = false;  // `take` knows what "auto" means
};

struct IntegerRange {
  uint64_t min = 0;
  uint64_t max = std::numeric_limits<int64_t>::max();
};
struct NumberRange {
  double min = 0;
  double max = std::numeric_limits<double>::max();
  bool above_min = false;  // min itself is out
  bool below_max = false;  // max itself is out
};

// "must be <expects>, found <value>".
std::string must_be(const std::string& expects, const Json& value);
// A whole number, 1e9 included; nothing for anything else, and for numbers outside the range.
std::optional<uint64_t> as_integer(const Json& value, IntegerRange range);
// Bytes: an integer, or a string like "64MiB" or "1.5GB".
std::optional<uint64_t> as_bytes(const Json& value);
std::optional<double> as_number(const Json& value, NumberRange range);

Value integer(IntegerRange range, std::string fallback, std::function<void(uint64_t)> set);
template <typename T>
Value integer(T& out, IntegerRange range) {
  return integer(range, std::to_string(out), [&out](uint64_t v) { out = static_cast<T>(v); });
}
Value number(NumberRange range, std::string fallback, std::function<void(double)> set);
Value number(double& out, NumberRange range);
Value boolean(bool& out);
Value bytes(uint64_t& out);
Value text(std::string expects, std::string& out);

// Runs `note` when the value has been taken.
Value and_then(Value value, std::function<void()> note);
// Runs `on_auto` for "auto".
Value with_auto(Value value, std::function<void()> on_auto);

// One of several strings.
template <typename T>
Value choice(T& out, std::vector<std::pair<std::string, T>> entries) {
  Value value;
  for (const auto& [word, meaning] : entries) {
    value.expects += (value.expects.empty() ? "" : " or ") + Json(word).dump();
    if (meaning == out) value.fallback = Json(word).dump();
    value.takes_auto |= word == "auto";
  }
  value.take = [&out, entries = std::move(entries),
                expects = value.expects](const Json& json) -> std::string {
    for (const auto& [word, meaning] : entries) {
      if (json == word) {
        out = meaning;
        return "";
      }
    }
    return must_be(expects, json);
  };
  return value;
}

// Values that land nowhere: only their type is checked.
enum class Type : uint8_t { boolean, integer, number, string, list, object, anything };
Value unused(Type type);

enum class Support : uint8_t { section, sections, honoured, no_effect, refused };

// Which values of a refused key ask for nothing and are therefore accepted.
struct Harmless {
  std::string words;  // "`false`"; empty: no value
  std::function<bool(const Json&)> test;
};
Harmless nothing();
Harmless only(const Json& value);
Harmless unless_enabled();  // no "enabled": true anywhere inside

struct Option {
  std::string path;  // "optimizer.params.lr"
  Support support = Support::honoured;
  Value value;
  std::string meaning;  // a noun phrase or sentence for the reference
  std::string note;     // what differs from DeepSpeed, why no effect, or what to use instead
  std::string trainer_default;  // what Hugging Face's Trainer puts for "auto"; empty: nothing
  Harmless harmless;            // refused keys only
};

Option honoured(std::string path, Value value, std::string meaning, std::string note = "",
                std::string trainer_default = "");
// An object whose keys have rows of their own. `on_present` is called before its keys are taken.
Option section(std::string path, std::string meaning, std::function<void()> on_present = {});
// A list of objects; rows of their keys have "PATH[].KEY" for a path. `on_each` is called before an
// object's keys are taken.
Option sections(std::string path, std::string meaning, std::function<void()> on_each);
Option no_effect(std::string path, Type type, std::string note);
// `instead` follows "cannot be honoured: " in a sentence.
Option refused(std::string path, Type type, Harmless harmless, std::string instead);

struct Group {
  std::string title;
  std::vector<Option> options;
};
using Table = std::vector<Group>;

// Takes every key of `root`. Returns the paths of keys without effect. null counts as not given.
// Throws ConfigError for the first key, in the text's order, that cannot be taken.
std::vector<std::string> take_all(const Json& root, const Table& table, const std::string& source);

// The table as Markdown, a heading and a table a group.
std::string reference(const Table& table);

}  // namespace strata::options
