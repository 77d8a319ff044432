#include "offload/slot_layout.h"

#include <algorithm>

#include "strata/error.h"

namespace strata::offload {

SlotLayout::SlotLayout(const std::vector<std::vector<uint64_t>>& piece_bytes, int slots)
    : slots_(slots) {
  for (const std::vector<uint64_t>& pieces : piece_bytes) {
    first_piece_.push_back(piece_end_.size());
    uint64_t end = 0;
    for (const uint64_t bytes : pieces) piece_end_.push_back(end += bytes);
    extents_.push_back({file_bytes_, end});
    file_bytes_ += end * static_cast<uint64_t>(slots);
  }
  first_piece_.push_back(piece_end_.size());
}

Extent SlotLayout::extent(int32_t sub_group, int slot) const {
  Extent extent = extents_[static_cast<size_t>(sub_group)];
  extent.offset += extent.bytes * static_cast<uint64_t>(slot);
  return extent;
}

SlotLayout::PieceRange SlotLayout::pieces(int32_t sub_group, uint64_t offset,
                                          uint64_t bytes) const {
  const auto group = static_cast<size_t>(sub_group);
  const size_t first = first_piece_[group];
  const size_t last = first_piece_[group + 1];
  // The piece behind the one that ends there.
  const auto behind = [&](uint64_t at) {
    if (at == 0) return first;
    const auto found = std::lower_bound(piece_end_.begin() + static_cast<ptrdiff_t>(first),
                                        piece_end_.begin() + static_cast<ptrdiff_t>(last), at);
    const auto index = static_cast<size_t>(found - piece_end_.begin());
    require(index < last && *found == at, "state is read and written in whole pieces");
    return index + 1;
  };
  return {behind(offset), behind(offset + bytes)};
}

Extent SlotLayout::piece(size_t index) const {
  const bool is_first = std::binary_search(first_piece_.begin(), first_piece_.end(), index);
  const uint64_t begin = is_first ? 0 : piece_end_[index - 1];
  return {begin, piece_end_[index] - begin};
}

int32_t SlotLayout::sub_group_of(size_t piece) const {
  const auto after = std::upper_bound(first_piece_.begin(), first_piece_.end(), piece);
  return static_cast<int32_t>(after - first_piece_.begin()) - 1;
}

}  // namespace strata::offload
