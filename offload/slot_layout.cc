#include "offload/slot_layout.h"

#include <algorithm>
#include <iterator>

#include "strata/error.h"

namespace strata::offload {

SlotLayout::SlotLayout(const std::vector<std::vector<Run>>& runs, int slots) : slots_(slots) {
  for (const std::vector<Run>& of_group : runs) {
    const auto sub_group = static_cast<int32_t>(extents_.size());
    first_run_.push_back(runs_.size());
    uint64_t bytes = 0;
    for (const Run& run : of_group) {
      runs_.push_back({run, sub_group, bytes, pieces_});
      bytes += run.bytes;
      pieces_ += (run.bytes + run.piece_bytes - 1) / run.piece_bytes;
    }
    extents_.push_back({file_bytes_, bytes});
    file_bytes_ += bytes * static_cast<uint64_t>(slots);
  }
  first_run_.push_back(runs_.size());
}

Extent SlotLayout::extent(int32_t sub_group, int slot) const {
  Extent extent = extents_[static_cast<size_t>(sub_group)];
  extent.offset += extent.bytes * static_cast<uint64_t>(slot);
  return extent;
}

SlotLayout::PieceRange SlotLayout::pieces(int32_t sub_group, uint64_t offset,
                                          uint64_t bytes) const {
  const auto group = static_cast<size_t>(sub_group);
  const size_t last = first_run_[group + 1];
  // The piece that begins at a place; at the end of the extent, the one behind the last.
  const auto piece_at = [&](uint64_t at) {
    size_t r = first_run_[group];
    while (r < last && at >= runs_[r].offset + runs_[r].run.bytes) ++r;
    if (r == last) {
      require(at == extents_[group].bytes, "state is read and written within its extent");
      return r < runs_.size() ? runs_[r].first_piece : pieces_;
    }
    const PlacedRun& placed = runs_[r];
    require((at - placed.offset) % placed.run.piece_bytes == 0,
            "state is read and written in whole pieces");
    return placed.first_piece + (at - placed.offset) / placed.run.piece_bytes;
  };
  return {piece_at(offset), piece_at(offset + bytes)};
}

const SlotLayout::PlacedRun& SlotLayout::run_of(size_t piece) const {
  const auto after =
      std::upper_bound(runs_.begin(), runs_.end(), piece,
                       [](size_t at, const PlacedRun& placed) { return at < placed.first_piece; });
  return *std::prev(after);
}

Extent SlotLayout::piece(size_t index) const {
  const PlacedRun& placed = run_of(index);
  const uint64_t begin = (index - placed.first_piece) * placed.run.piece_bytes;
  return {placed.offset + begin, std::min(placed.run.piece_bytes, placed.run.bytes - begin)};
}

int32_t SlotLayout::sub_group_of(size_t piece) const { return run_of(piece).sub_group; }

}  // namespace strata::offload
