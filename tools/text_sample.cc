#include "tools/text_sample.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace strata::tools {
namespace {

constexpr double kTemperature = 0.8;
constexpr size_t kBytes = 256;

// Scores beyond the bytes belong to no byte.
uint8_t draw(const std::vector<float>& scores, std::mt19937_64& random) {
  const auto end = scores.begin() + static_cast<int64_t>(std::min(scores.size(), kBytes));
  const double highest = *std::max_element(scores.begin(), end);
  std::vector<double> weights;
  for (auto score = scores.begin(); score != end; ++score) {
    weights.push_back(std::exp((*score - highest) / kTemperature));
  }
  std::discrete_distribution<int> distribution(weights.begin(), weights.end());
  return static_cast<uint8_t>(distribution(random));
}

}  // namespace

std::string continue_text(Engine& engine, std::string_view prompt, const SampleOptions& options) {
  std::vector<int32_t> tokens;
  for (const char c : prompt) tokens.push_back(static_cast<uint8_t>(c));
  std::mt19937_64 random(options.seed);
  std::string text;
  for (int64_t i = 0; i < options.bytes; ++i) {
    const auto context = std::min(tokens.size(), static_cast<size_t>(options.sequence));
    const auto scores = engine.next_token_scores(std::span(tokens).last(context));
    const uint8_t byte = draw(scores, random);
    tokens.push_back(byte);
    text.push_back(static_cast<char>(byte));
  }
  return text;
}

std::string printable(std::string_view text) {
  std::string shown(text);
  for (char& c : shown) {
    const bool is_shown = c == '\n' || (c >= ' ' && c <= '~');
    if (!is_shown) c = '.';
  }
  return shown;
}

}  // namespace strata::tools
