#include "engine/config/option.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <string_view>

#include "engine/config/nearest.h"
#include "strata/error.h"

namespace strata::options {
namespace {

std::string words(IntegerRange range) {
  if (range.max >= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return fmt::format("an integer of at least {}", range.min);
  }
  return fmt::format("an integer from {} to {}", range.min, range.max);
}

std::string words(NumberRange range) {
  const std::string lower =
      fmt::format("{} {}", range.above_min ? "above" : "of at least", range.min);
  if (range.max == std::numeric_limits<double>::max()) return "a number " + lower;
  return fmt::format("a number {} and {} {}", lower, range.below_max ? "below" : "at most",
                     range.max);
}

struct TypeWords {
  std::string_view words;
  bool (*test)(const Json&);
};

const TypeWords& type_words(Type type) {
  static constexpr std::array<TypeWords, 7> kTypes = {{
      {"true or false", [](const Json& v) { return v.is_boolean(); }},
      {"an integer",
       [](const Json& v) {
         return v.is_number_integer() ||
                (v.is_number_float() && std::trunc(v.get<double>()) == v.get<double>());
       }},
      {"a number", [](const Json& v) { return v.is_number(); }},
      {"a string", [](const Json& v) { return v.is_string(); }},
      {"a list", [](const Json& v) { return v.is_array(); }},
      {"an object", [](const Json& v) { return v.is_object(); }},
      {"any value", [](const Json&) { return true; }},
  }};
  return kTypes[static_cast<size_t>(type)];
}

bool asks_to_enable(const Json& value) {
  if (value.is_object() && value.contains("enabled") && value["enabled"] != false) return true;
  return value.is_structured() && std::any_of(value.begin(), value.end(), asks_to_enable);
}

// Walks an object's keys; one walker a text.
class Walker {
 public:
  Walker(const Table& table, const std::string& source) : table_(table), source_(source) {}

  // `prefix` is the table's, `shown` the text's: "groups[]." for "groups[1].".
  void walk(const Json& object, const std::string& prefix, const std::string& shown) {
    for (const auto& [key, value] : object.items()) {
      const std::string path = prefix + key;
      if (key.find('.') != std::string::npos) {
        check(shown + key, "has a dot in its name: write the sections before it as objects");
      }
      const Option* option = find(path);
      if (option == nullptr) fail_unknown(path, shown + key);
      if (!value.is_null()) take(*option, value, shown + key);
    }
  }

  std::vector<std::string> no_effect_paths;

 private:
  const Option* find(const std::string& path) const {
    for (const Group& group : table_) {
      for (const Option& option : group.options) {
        if (option.path == path) return &option;
      }
    }
    return nullptr;
  }

  void take(const Option& option, const Json& value, const std::string& shown) {
    const bool is_auto = value == "auto" && !option.value.takes_auto;
    switch (option.support) {
      case Support::section:
        check(shown, option.value.take(value));
        walk(value, option.path + ".", shown + ".");
        return;
      case Support::sections:
        take_each(option, value, shown);
        return;
      case Support::honoured:
        check(shown, is_auto ? refuse_auto(option) : option.value.take(value));
        return;
      case Support::no_effect:
        if (!is_auto) check(shown, option.value.take(value));
        no_effect_paths.push_back(shown);
        return;
      case Support::refused:
        if (is_auto) check(shown, refuse_auto(option));
        if (option.harmless.test(value)) return;
        check(shown, option.value.take(value));
        check(shown, "cannot be honoured: " + option.note);
    }
  }

  void take_each(const Option& option, const Json& list, const std::string& shown) {
    if (!list.is_array()) check(shown, must_be(option.value.expects, list));
    for (size_t i = 0; i < list.size(); ++i) {
      const std::string element = fmt::format("{}[{}]", shown, i);
      check(element, option.value.take(list[i]));
      walk(list[i], option.path + "[].", element + ".");
    }
  }

  void check(const std::string& shown, const std::string& complaint) const {
    if (complaint.empty()) return;
    throw ConfigError(fmt::format("{}: \"{}\" {}", source_, shown, complaint));
  }

  static std::string refuse_auto(const Option& option) {
    const std::string instead =
        option.harmless.words.empty() ? option.value.expects : option.harmless.words;
    const std::string hint =
        option.trainer_default.empty()
            ? ""
            : fmt::format(" (the Trainer's own default is {})", option.trainer_default);
    return fmt::format(
        "is \"auto\", which only Hugging Face's Trainer can fill in: write {} instead{}", instead,
        hint);
  }

  [[noreturn]] void fail_unknown(const std::string& path, const std::string& shown) const {
    std::vector<std::string> known;
    for (const Group& group : table_) {
      for (const Option& option : group.options) known.push_back(option.path);
    }
    const std::optional<std::string> near = nearest_path(path, known);
    const std::string advice = near ? fmt::format("did you mean \"{}\"?", *near)
                                    : "remove it, or see docs/configuration.md for all keys";
    throw ConfigError(fmt::format("{}: \"{}\" is not a known key: {}", source_, shown, advice));
  }

  const Table& table_;
  const std::string& source_;
};

}  // namespace

std::string must_be(const std::string& expects, const Json& value) {
  return fmt::format("must be {}, found {}", expects, describe(value));
}

std::optional<uint64_t> as_integer(const Json& value, IntegerRange range) {
  constexpr double kExact = 9007199254740992.0;  // 2^53: whole numbers up to here are exact
  uint64_t result = 0;
  if (value.is_number_unsigned()) {
    result = value.get<uint64_t>();
  } else if (value.is_number_float()) {
    const double number = value.get<double>();
    if (!(number >= 0 && number <= kExact && std::trunc(number) == number)) return std::nullopt;
    result = static_cast<uint64_t>(number);
  } else {
    return std::nullopt;
  }
  if (result < range.min || result > range.max) return std::nullopt;
  return result;
}

std::optional<double> as_number(const Json& value, NumberRange range) {
  if (!value.is_number()) return std::nullopt;
  const double number = value.get<double>();
  const bool in_range = std::isfinite(number) &&
                        (range.below_max ? number < range.max : number <= range.max) &&
                        (range.above_min ? number > range.min : number >= range.min);
  return in_range ? std::optional<double>(number) : std::nullopt;
}

std::optional<uint64_t> as_bytes(const Json& value) {
  if (!value.is_string()) return as_integer(value, {});
  constexpr std::array<std::pair<std::string_view, double>, 9> kUnits = {{{"B", 1},
                                                                          {"KB", 1e3},
                                                                          {"MB", 1e6},
                                                                          {"GB", 1e9},
                                                                          {"TB", 1e12},
                                                                          {"KiB", 0x1p10},
                                                                          {"MiB", 0x1p20},
                                                                          {"GiB", 0x1p30},
                                                                          {"TiB", 0x1p40}}};
  const std::string& text = value.get_ref<const std::string&>();
  const char* const end = text.data() + text.size();
  double amount = 0;
  const auto parsed = std::from_chars(text.data(), end, amount, std::chars_format::fixed);
  if (parsed.ec != std::errc() || !(amount >= 0)) return std::nullopt;
  std::string_view unit(parsed.ptr, static_cast<size_t>(end - parsed.ptr));
  while (unit.starts_with(' ')) unit.remove_prefix(1);
  for (const auto& [word, factor] : kUnits) {
    if (unit == word && amount * factor < 0x1p62) return static_cast<uint64_t>(amount * factor);
  }
  return std::nullopt;
}

Value integer(IntegerRange range, std::string fallback, std::function<void(uint64_t)> set) {
  const std::string expects = words(range);
  return {expects, std::move(fallback), [=](const Json& value) -> std::string {
            const auto result = as_integer(value, range);
            if (!result) return must_be(expects, value);
            set(*result);
            return "";
          }};
}

Value number(NumberRange range, std::string fallback, std::function<void(double)> set) {
  const std::string expects = words(range);
  return {expects, std::move(fallback), [=](const Json& value) -> std::string {
            const auto result = as_number(value, range);
            if (!result) return must_be(expects, value);
            set(*result);
            return "";
          }};
}

Value number(double& out, NumberRange range) {
  return number(range, Json(out).dump(), [&out](double value) { out = value; });
}

Value and_then(Value value, std::function<void()> note) {
  value.take = [take = std::move(value.take), note](const Json& json) -> std::string {
    std::string complaint = take(json);
    if (complaint.empty()) note();
    return complaint;
  };
  return value;
}

Value with_auto(Value value, std::function<void()> on_auto) {
  value.takes_auto = true;
  value.take = [take = std::move(value.take), on_auto](const Json& json) -> std::string {
    if (json != "auto") return take(json);
    on_auto();
    return "";
  };
  return value;
}

Value boolean(bool& out) {
  return {"true or false", Json(out).dump(), [&out](const Json& value) -> std::string {
            if (!value.is_boolean()) return must_be("true or false", value);
            out = value.get<bool>();
            return "";
          }};
}

Value bytes(uint64_t& out) {
  const std::string expects =
      "a size in bytes, as an integer or a string like \"64MiB\" or \"1.5GB\"";
  return {expects, std::to_string(out), [=, &out](const Json& value) -> std::string {
            const auto result = as_bytes(value);
            if (!result) return must_be(expects, value);
            out = *result;
            return "";
          }};
}

Value text(std::string expects, std::string& out) {
  return {expects, out.empty() ? "" : Json(out).dump(),
          [expects, &out](const Json& value) -> std::string {
            if (!value.is_string() || value.get_ref<const std::string&>().empty()) {
              return must_be(expects, value);
            }
            out = value.get<std::string>();
            return "";
          }};
}

Value unused(Type type) {
  const TypeWords& words = type_words(type);
  return {std::string(words.words), "", [&words](const Json& value) -> std::string {
            return words.test(value) ? "" : must_be(std::string(words.words), value);
          }};
}

Harmless nothing() {
  return {"", [](const Json&) { return false; }};
}

Harmless only(const Json& value) {
  return {value.dump(), [value](const Json& given) { return given == value; }};
}

Harmless unless_enabled() {
  return {"\"enabled\": false", [](const Json& value) {
            return value == false || (value.is_object() && !asks_to_enable(value));
          }};
}

Option honoured(std::string path, Value value, std::string meaning, std::string note,
                std::string trainer_default) {
  return {std::move(path),
          Support::honoured,
          std::move(value),
          std::move(meaning),
          std::move(note),
          std::move(trainer_default),
          {}};
}

Option section(std::string path, std::string meaning, std::function<void()> on_present) {
  Value value = unused(Type::object);
  value.take = [check = value.take, on_present](const Json& json) -> std::string {
    const std::string complaint = check(json);
    if (complaint.empty() && on_present) on_present();
    return complaint;
  };
  return {std::move(path), Support::section, std::move(value), std::move(meaning), "", "", {}};
}

Option sections(std::string path, std::string meaning, std::function<void()> on_each) {
  Option option = section(std::move(path), std::move(meaning), std::move(on_each));
  option.support = Support::sections;
  option.value.expects = "a list of objects";
  return option;
}

Option no_effect(std::string path, Type type, std::string note) {
  return {std::move(path), Support::no_effect, unused(type), "", std::move(note), "", {}};
}

Option refused(std::string path, Type type, Harmless harmless, std::string instead) {
  return {std::move(path),    Support::refused, unused(type), "", std::move(instead), "",
          std::move(harmless)};
}

std::vector<std::string> take_all(const Json& root, const Table& table, const std::string& source) {
  Walker walker(table, source);
  walker.walk(root, "", "");
  return std::move(walker.no_effect_paths);
}

}  // namespace strata::options
