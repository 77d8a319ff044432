#include "offload/extent_sums.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>

#include "kernels/device/thread_team.h"
#include "strata/error.h"

namespace strata::offload {
namespace {

// 0 means unknown.
uint64_t sum_of(std::span<const std::byte> bytes) {
  return std::max<uint64_t>(XXH3_64bits(bytes.data(), bytes.size()), 1);
}

// Calls visit(piece, its bytes) for the pieces of a part of an extent, by the thread team.
template <typename Visit>
void for_pieces(const SlotLayout& layout, SlotLayout::PieceRange range, uint64_t offset,
                std::span<const std::byte> data, const Visit& visit) {
  parallel_for(static_cast<int64_t>(range.end - range.begin), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const size_t index = range.begin + static_cast<size_t>(i);
      const Extent piece = layout.piece(index);
      visit(index, data.subspan(piece.offset - offset, piece.bytes));
    }
  });
}

}  // namespace

ExtentSums::ExtentSums(const SlotLayout& layout, const std::string& path, bool on)
    : layout_(layout),
      path_(path),
      on_(on),
      sums_(layout.pieces() * static_cast<size_t>(layout.slots()), 0) {}

void ExtentSums::seal(int32_t sub_group, int slot, uint64_t offset,
                      std::span<const std::byte> data) {
  if (!on_) return;
  for_pieces(layout_, layout_.pieces(sub_group, offset, data.size()), offset, data,
             [&](size_t piece, std::span<const std::byte> bytes) {
               sum(slot, piece).store(sum_of(bytes), std::memory_order_relaxed);
             });
}

void ExtentSums::check(int32_t sub_group, int slot, uint64_t offset,
                       std::span<const std::byte> data) const {
  if (!on_) return;
  const auto range = layout_.pieces(sub_group, offset, data.size());
  const std::span<const uint64_t> expected = of_slot(slot);
  std::atomic<size_t> first_wrong = range.end;
  for_pieces(layout_, range, offset, data, [&](size_t piece, std::span<const std::byte> bytes) {
    if (expected[piece] == 0 || expected[piece] == sum_of(bytes)) return;
    size_t first = first_wrong.load();
    while (piece < first && !first_wrong.compare_exchange_weak(first, piece)) {
    }
  });
  const size_t wrong = first_wrong.load();
  if (wrong == range.end) return;
  const Extent piece = layout_.piece(wrong);
  fail(sub_group, slot, wrong, sum_of(data.subspan(piece.offset - offset, piece.bytes)));
}

void ExtentSums::fail(int32_t sub_group, int slot, size_t piece, uint64_t found) const {
  const Extent at = layout_.piece(piece);
  throw CorruptionError(fmt::format(
      "'{}' at byte {}: {} bytes of sub-group {}'s slot {} have checksum {:016x} where {:016x} was "
      "written{}",
      path_, layout_.extent(sub_group, slot).offset + at.offset, at.bytes, sub_group, slot, found,
      of_slot(slot)[piece], whose(found, piece)));
}

// Bytes that belong somewhere were lost on their way, others are damaged.
std::string ExtentSums::whose(uint64_t found, size_t piece) const {
  const auto holds = [&](int slot, size_t other) {
    return sum(slot, other).load(std::memory_order_relaxed) == found;
  };
  for (int slot = 0; slot < layout_.slots(); ++slot) {
    if (holds(slot, piece)) {
      return fmt::format(": it is what slot {} holds, from another step", slot);
    }
    for (size_t other = 0; other < layout_.pieces(); ++other) {
      if (!holds(slot, other)) continue;
      return fmt::format(": it is what sub-group {} has in its slot {} at byte {}",
                         layout_.sub_group_of(other), slot, layout_.piece(other).offset);
    }
  }
  return ": it is damaged, or older than every slot";
}

std::span<const uint64_t> ExtentSums::of_slot(int slot) const {
  return std::span(sums_).subspan(static_cast<size_t>(slot) * layout_.pieces(), layout_.pieces());
}

void ExtentSums::forget() { std::fill(sums_.begin(), sums_.end(), 0); }

void ExtentSums::restore(int32_t sub_group, int slot, std::span<const uint64_t> sums) {
  if (!on_) return;
  const auto range = layout_.pieces(sub_group, 0, layout_.extent(sub_group, slot).bytes);
  for (size_t piece = range.begin; piece < range.end; ++piece) sum(slot, piece) = sums[piece];
}

}  // namespace strata::offload
