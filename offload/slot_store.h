// Slots: places on disk for the sub-groups' state, and the journal that says which of them count.
//
// A sub-group with state on nvme has one slot or two, each a contiguous extent. With two, a step
// writes the slot that does not count; commit() makes the writes durable, appends a journal record,
// and only then flips. Whatever happens before that leaves the step before untouched. The record
// carries a payload that this room never reads.
//
// The journal is two record places used in turn, so the last two records survive; recover() takes
// the newest whose checksum holds. Ranks commit together: after commit() nobody starts the next
// step before all are through, so that their newest records are at most one generation apart and
// the older of the two is whole everywhere; they recover the smallest of their newest.
//
// Threads: one driver thread calls commit() and flip-related verbs; extents may be asked by any
// thread between commits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/block_file.h"
#include "io/striped_file.h"
#include "offload/pump.h"
#include "strata/log.h"

namespace strata::offload {

// A slot's byte range in the state file.
struct Extent {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// Where everything lies in the state file.
class SlotLayout {
 public:
  // `extent_bytes`: of each sub-group's slots, multiples of 4096; 0 where nothing is on disk.
  SlotLayout(std::span<const uint64_t> extent_bytes, int slots);

  int slots() const { return slots_; }
  uint64_t file_bytes() const { return file_bytes_; }
  Extent extent(int32_t sub_group, int slot) const;
  size_t sub_groups() const { return extents_.size(); }

 private:
  int slots_;
  uint64_t file_bytes_ = 0;
  std::vector<Extent> extents_;  // of slot 0; slot 1 follows it
};

struct JournalRecord {
  uint64_t generation = 0;         // commits so far
  std::vector<uint8_t> slot_of;    // by sub-group
  std::vector<std::byte> payload;  // engine's own
};

class SlotStore {
 public:
  struct Files {
    io::StripedFile state;
    std::optional<io::BlockFile> journal;  // with two slots
  };
  static constexpr uint64_t kMaxPayloadBytes = 4096;
  // Size of the journal file for a layout.
  static uint64_t journal_bytes(const SlotLayout& layout);

  // `pump` and `staging` must outlive the store; `staging` is pinned memory of
  // journal_bytes() / 2 bytes, used for journal records.
  SlotStore(SlotLayout layout, Files files, Pump& pump, std::span<std::byte> staging);

  const SlotLayout& layout() const { return layout_; }
  const io::StripedFile& file() const { return files_.state; }
  // Descriptors of all files that the store's transfers go to.
  std::vector<int> descriptors() const;

  // The slot that holds the last committed state, and the one the next step writes.
  Extent current(int32_t sub_group) const;
  Extent next(int32_t sub_group) const;

  // All writes of this step have completed: flush, record, flush, flip. With one slot there is
  // nothing to keep apart, and this returns at once. Throws IoError; then nothing was flipped.
  void commit(std::span<const std::byte> payload);

  // Reads the journal and puts its newest valid record of at most that generation in force; nullopt
  // when there is none.
  std::optional<JournalRecord> recover(
      uint64_t newest_generation = std::numeric_limits<uint64_t>::max());

 private:
  std::optional<JournalRecord> read_record(int place);
  void write_record(std::span<const std::byte> payload);

  const SlotLayout layout_;
  Files files_;
  Pump& pump_;
  const std::span<std::byte> staging_;
  uint64_t generation_ = 0;
  std::vector<uint8_t> slot_of_;
};

}  // namespace strata::offload
