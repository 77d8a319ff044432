#include "engine/comm/failure_text.h"

#include <fmt/format.h>

#include <algorithm>

namespace strata::engine {
namespace {

// Control characters would break the line, or a terminal.
std::string one_line(std::string_view text, size_t max_bytes) {
  constexpr std::string_view kCut = "...";
  std::string line(text);
  if (line.size() > max_bytes) {
    size_t end = max_bytes - kCut.size();
    const auto inside_a_character = [&] {
      return (static_cast<unsigned char>(line[end]) & 0xc0) == 0x80;  // UTF-8
    };
    while (end > 0 && inside_a_character()) --end;
    line.resize(end);
    line += kCut;
  }
  std::replace_if(
      line.begin(), line.end(),
      [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; }, ' ');
  return line;
}

std::string words(const Call& call) {
  const std::string_view label = call.label;
  if (label.empty()) return std::string(name(call.verb));
  constexpr size_t kMaxLabelBytes = 64;
  return fmt::format("{} ({})", name(call.verb), one_line(label, kMaxLabelBytes));
}

std::string list(std::span<const int> ranks) {
  if (ranks.size() == 1) return fmt::format("rank {}", ranks[0]);
  constexpr size_t kMaxNamed = 16;
  const size_t named = std::min(ranks.size() - 1, kMaxNamed);
  const std::string first = fmt::format("ranks {}", fmt::join(ranks.first(named), ", "));
  if (named == ranks.size() - 1) return fmt::format("{} and {}", first, ranks.back());
  return fmt::format("{} and {} more", first, ranks.size() - named);
}

}  // namespace

std::string failed_text(int rank, std::string_view reason) {
  constexpr size_t kRoomForTheRest = 64;
  return fmt::format("rank {} failed: {}", rank,
                     one_line(reason, kMaxFailureBytes - kRoomForTheRest));
}

std::string died_text(int rank) { return fmt::format("rank {} died", rank); }

std::string left_text(int gone, int waiting, const Call& call) {
  return fmt::format("rank {} left the run while rank {} waited for it in {}", gone, waiting,
                     words(call));
}

std::string stalled_text(std::span<const int> missing, const Call& call, double timeout_s) {
  return fmt::format("{} did not come to {} within {:g} s", list(missing), words(call), timeout_s);
}

std::string mismatch_text(const CallOf& one, const CallOf& other) {
  const CallOf& first = one.rank < other.rank ? one : other;
  const CallOf& second = one.rank < other.rank ? other : one;
  return fmt::format("ranks {} and {} disagree: {} of {} bytes against {} of {} bytes", first.rank,
                     second.rank, words(first.call), first.call.bytes, words(second.call),
                     second.call.bytes);
}

}  // namespace strata::engine
