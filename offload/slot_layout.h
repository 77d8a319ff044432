// Where slots lie in the state file. Pure arithmetic.
//
// A sub-group with state on nvme has one slot or more, each a contiguous extent. An extent is cut
// into pieces: what is read, written and checked as a whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace strata::offload {

// A slot's byte range in the state file.
struct Extent {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

class SlotLayout {
 public:
  // A part of an extent, cut into pieces of one size, of which the last may be shorter; multiples
  // of 4096.
  struct Run {
    uint64_t bytes = 0;
    uint64_t piece_bytes = 0;
  };
  // `runs`: of each sub-group's extent; none where nothing is on disk.
  SlotLayout(const std::vector<std::vector<Run>>& runs, int slots);

  int slots() const { return slots_; }
  uint64_t file_bytes() const { return file_bytes_; }
  Extent extent(int32_t sub_group, int slot) const;
  size_t sub_groups() const { return extents_.size(); }

  // Pieces of one slot of every sub-group, which count through.
  size_t pieces() const { return pieces_; }
  // Those of a sub-group that make up a part of its extent. Throws Error for a part that begins or
  // ends inside a piece.
  struct PieceRange {
    size_t begin = 0;
    size_t end = 0;
  };
  PieceRange pieces(int32_t sub_group, uint64_t offset, uint64_t bytes) const;
  // A piece's bytes, in the extent of its sub-group.
  Extent piece(size_t index) const;
  int32_t sub_group_of(size_t piece) const;

 private:
  struct PlacedRun {
    Run run;
    int32_t sub_group = 0;
    uint64_t offset = 0;  // in its extent
    size_t first_piece = 0;
  };
  const PlacedRun& run_of(size_t piece) const;

  int slots_;
  uint64_t file_bytes_ = 0;
  size_t pieces_ = 0;
  std::vector<Extent> extents_;    // of slot 0; the others follow it
  std::vector<size_t> first_run_;  // by sub-group, and the number of all
  std::vector<PlacedRun> runs_;
};

}  // namespace strata::offload
