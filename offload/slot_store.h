// Slots: places on disk for the sub-groups' state, and the journal that says which of them count.
//
// A sub-group with state on nvme has one slot or more. With more than one, a step writes a slot
// that is not current; advance() makes it so for what is read from then on, and make_durable()
// makes it count: it flushes what was written and appends a journal record. Until that is done
// nobody writes to the slot of the step before, so whatever happens leaves one of the two. The
// record carries the checksums of what it makes count, and a payload that this room never reads.
// A SlotPin keeps a generation's slot as it is while the steps after it go on in the others.
//
// The journal is two record places used in turn, so the last two records survive; recover() takes
// the newest whose checksum holds. Ranks commit together: nobody writes the next step's state
// before all are through, so that their newest records are at most one generation apart and
// the older of the two is whole everywhere; they recover the smallest of their newest.
//
// Threads: one driver thread, which may leave make_durable() to another and waits for it before it
// calls anything else but what is said to be for any thread, and pins.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/block_file.h"
#include "io/striped_file.h"
#include "offload/extent_sums.h"
#include "offload/pump.h"
#include "offload/slot_layout.h"
#include "strata/log.h"

namespace strata::offload {

struct JournalRecord {
  uint64_t generation = 0;         // that of begin(), and commits since
  std::vector<uint8_t> slot_of;    // by sub-group
  std::vector<uint64_t> sums;      // by piece (SlotLayout)
  std::vector<std::byte> payload;  // engine's own
};

// The record that `bytes` of the journal hold, for a store of this layout; nullopt for what was not
// written so.
std::optional<JournalRecord> parse_record(std::span<const std::byte> bytes,
                                          const SlotLayout& layout);

class SlotStore {
 public:
  struct Files {
    io::StripedFile state;
    std::optional<io::BlockFile> journal;  // with more than one slot
  };
  static constexpr uint64_t kMaxPayloadBytes = 4096;
  // Size of the journal file for a layout.
  static uint64_t journal_bytes(const SlotLayout& layout);

  struct Memory {
    std::span<std::byte> record;  // pinned, of journal_bytes() / 2 bytes, with a journal
    bool checksums = true;        // false: what is read is taken as it is
  };
  // `pump` and the memory must outlive the store.
  SlotStore(SlotLayout layout, Files files, Pump& pump, const Memory& memory);

  const SlotLayout& layout() const { return layout_; }
  const io::StripedFile& file() const { return files_.state; }

  // The slot of every sub-group that holds the state, and the one the next step writes. Any thread.
  int current_slot() const { return slot_; }
  int next_slot() const { return next_; }
  Extent current(int32_t sub_group) const { return layout_.extent(sub_group, current_slot()); }
  Extent next(int32_t sub_group) const { return layout_.extent(sub_group, next_slot()); }

  // Whether the next step has a slot to write: of two slots, not while one is current and the other
  // pinned.
  bool has_next_slot() const { return next_ != kNone; }

  // What will be written of a sub-group's slot, from `offset` in it on, and what was read of it, as
  // ExtentSums' verbs. Any thread.
  void seal(int32_t sub_group, int slot, uint64_t offset, std::span<const std::byte> data);
  void check(int32_t sub_group, int slot, uint64_t offset, std::span<const std::byte> data) const;

  // Nothing counts until begin(): for state that is about to be written anew. Throws IoError.
  void erase_records();
  // Everything in the current slots is what training begins with, and counts as this generation:
  // makes it durable. With one slot there is nothing to record. Throws IoError.
  void begin(uint64_t generation, std::span<const std::byte> payload);
  // With a journal: what the last step writes is current, and the next generation; not durable yet.
  void advance();
  // All writes of the current generation have completed: flush, record, flush. With one slot there
  // is nothing to keep apart, and this returns at once. Throws IoError; the generation before then
  // counts, or this one where its record was written.
  void make_durable(std::span<const std::byte> payload);
  // Both, one after the other.
  void commit(std::span<const std::byte> payload);
  // Bytes of records that advance() has let in for. Their transfers carry Account::update.
  uint64_t promised_bytes() const { return promised_bytes_; }

  // Reads the journal and puts its newest valid record of at most that generation in force; nullopt
  // when there is none, as where the first was being written: whoever knows that it counted has
  // lost it. A newer record is erased: what is written next goes where its state lies.
  // Throws CorruptionError where both records were written and neither is whole.
  std::optional<JournalRecord> recover(
      uint64_t newest_generation = std::numeric_limits<uint64_t>::max());

 private:
  friend class SlotPin;
  static constexpr int kNone = -1;

  int pin();
  void unpin();
  void choose_next_slot();
  std::optional<JournalRecord> read_record(uint64_t place);
  void put_in_force(const JournalRecord& record);
  void write_record(std::span<const std::byte> payload, Account account);
  // The place of a generation's record.
  void transfer_record(io::Op op, uint64_t generation, Account account = Account::step);
  void flush(const io::FileSpace& file, const char* label);

  const SlotLayout layout_;
  Files files_;
  Pump& pump_;
  const Memory memory_;
  ExtentSums sums_;
  uint64_t generation_ = 0;
  uint64_t promised_bytes_ = 0;
  int pinned_slot_ = kNone;
  std::atomic<int> slot_ = 0;
  std::atomic<int> next_ = 0;
};

// Nobody writes to what is a store's current slot at its construction until it is released. One at
// a time; the driver's, also while another thread makes a generation durable.
class SlotPin {
 public:
  explicit SlotPin(SlotStore& store) : store_(&store), slot_(store.pin()) {}
  ~SlotPin() { release(); }
  SlotPin(const SlotPin&) = delete;
  SlotPin& operator=(const SlotPin&) = delete;

  int slot() const { return slot_; }
  void release() {
    if (SlotStore* const store = std::exchange(store_, nullptr)) store->unpin();
  }

 private:
  SlotStore* store_;
  const int slot_;
};

}  // namespace strata::offload
