#include "engine/config/nearest.h"

#include <algorithm>
#include <cctype>
#include <string_view>

namespace strata::options {
namespace {

std::string_view last_word(std::string_view path) { return path.substr(path.rfind('.') + 1); }
std::string_view section_of(std::string_view path) {
  const size_t dot = path.rfind('.');
  return dot == std::string_view::npos ? std::string_view() : path.substr(0, dot);
}

bool same_letter(char a, char b) {
  return std::tolower(static_cast<unsigned char>(a)) == std::tolower(static_cast<unsigned char>(b));
}

// Levenshtein's distance with neighbouring letters exchanged as one edit; case does not count.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before_last(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = last[j - 1] + (same_letter(a[i - 1], b[j - 1]) ? 0 : 1);
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, replace});
      if (i > 1 && j > 1 && same_letter(a[i - 1], b[j - 2]) && same_letter(a[i - 2], b[j - 1])) {
        row[j] = std::min(row[j], before_last[j - 2] + 1);
      }
    }
    before_last.swap(last);
    last.swap(row);
  }
  return last[b.size()];
}

}  // namespace

std::optional<std::string> nearest_path(const std::string& path,
                                        const std::vector<std::string>& known) {
  const std::string_view word = last_word(path);
  const size_t limit = std::max<size_t>(2, word.size() / 3);
  const std::string* best = nullptr;
  size_t best_cost = 0;
  for (const std::string& candidate : known) {
    const size_t distance = edit_distance(word, last_word(candidate));
    const bool same_section = section_of(path) == section_of(candidate);
    // In another section only the word itself counts, but for a slip.
    if (distance > (same_section ? limit : 1) || distance >= std::max<size_t>(1, word.size())) {
      continue;
    }
    const size_t cost = 2 * distance + (same_section ? 0 : 3);
    if (best == nullptr || cost < best_cost) {
      best = &candidate;
      best_cost = cost;
    }
  }
  return best == nullptr ? std::nullopt : std::optional<std::string>(*best);
}

}  // namespace strata::options
