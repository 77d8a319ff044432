// The option tables as Markdown.
#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "engine/config/option.h"
#include "engine/config/option_table.h"
#include "engine/model/gpt2_options.h"
#include "strata/config.h"

namespace strata {
namespace options {
namespace {

// A cell of a Markdown table.
std::string cell(std::string text) {
  for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2)
    text.insert(at, "\\");
  return text;
}

// With a capital, unless the first word is a name like fp16.
std::string capitalized(std::string text) {
  const std::string word = text.substr(0, text.find(' '));
  const bool is_name =
      std::any_of(word.begin(), word.end(), [](char c) { return c < 'a' || c > 'z'; });
  if (!word.empty() && !is_name) text[0] = static_cast<char>(text[0] - 'a' + 'A');
  return text;
}

std::string code(const std::string& text) { return text.empty() ? "" : "`" + text + "`"; }

std::string status(const Option& option) {
  switch (option.support) {
    case Support::section:
    case Support::sections:
      return "section";
    case Support::honoured:
      return "honoured";
    case Support::no_effect:
      return "no effect";
    case Support::refused:
      return option.harmless.words.empty() ? "error"
                                           : "error unless " + code(option.harmless.words);
  }
  return "";
}

std::string explanation(const Option& option) {
  std::string text = option.meaning;
  const std::string note = capitalized(option.note);
  if (!note.empty()) text += (text.empty() ? "" : " ") + note;
  if (!text.empty() && text.back() != '.') text += '.';
  return text;
}

std::string row(const Option& option) {
  return fmt::format("| `{}` | {} | {} | {} | {} |\n", option.path, cell(option.value.expects),
                     cell(code(option.value.fallback)), cell(status(option)),
                     cell(explanation(option)));
}

}  // namespace

std::string reference(const Table& table) {
  std::string text;
  for (const Group& group : table) {
    text += fmt::format(
        "\n### {}\n\n| key | value | default | status | meaning |\n"
        "| --- | --- | --- | --- | --- |\n",
        group.title);
    for (const Option& option : group.options) text += row(option);
  }
  return text;
}

}  // namespace options

std::string configuration_reference() {
  static constexpr const char* kIntroduction = R"(# Configuration

This page is made from the option tables in `engine/`; a test compares the two.

## ds_config.json

Strata reads DeepSpeed's configuration. Every key of it is one of these:

* **honoured**: it does what it does in DeepSpeed; differences are said.
* **no effect**: there is nothing here for it to change; the start-up lines list such keys.
* **error**: it asks for something that Strata cannot do (yet). A value that asks for nothing, such
  as `false`, is accepted.

Any other key is an error too. Comments (`//` and `/* */`) are allowed, a key that appears twice is
an error, `null` counts as not given, and `1e9` is an integer. `"auto"` is accepted where its
meaning follows from other keys; elsewhere it is refused by name, because only Hugging Face's Trainer
knows what to put there. What DeepSpeed has no key for lives under `"strata"`.
)";
  static constexpr const char* kModel = R"(
## config.json of a model

A model is described with Hugging Face's names. `model_type` chooses the family; `gpt2` is there.
)";
  ConfigDraft draft;
  models::Gpt2Draft gpt2;
  return kIntroduction + options::reference(config_table(draft)) + kModel +
         options::reference(models::gpt2_table(gpt2));
}

}  // namespace strata
