// What the slots should hold: a checksum (XXH3, 64 bits) of every piece of every slot, kept in
// memory and, of the generation in force, in the journal.
//
// Who writes an extent seals it first; who has read one checks it. So bytes that are torn, stale,
// damaged, or another extent's are found before anything is computed of them, and because the
// table knows all of them, told apart.
//
// Threads: different pieces may be sealed and checked at the same time, of one slot or of several.
// Both use the calling
// thread's team (kernels/device/thread_team.h) and allocate nothing unless a check fails.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "offload/slot_layout.h"

namespace strata::offload {

class ExtentSums {
 public:
  // `layout` and `path`, the state file's for messages, must outlive the table. A table that is off
  // seals nothing and lets everything pass.
  ExtentSums(const SlotLayout& layout, const std::string& path, bool on);

  bool on() const { return on_; }

  // `data`, from `offset` in a slot on, is what the slot will hold there: whole pieces.
  void seal(int32_t sub_group, int slot, uint64_t offset, std::span<const std::byte> data);
  // Whether it is what was sealed last. A piece that nobody has sealed passes. Throws
  // CorruptionError naming file, offset, expected and found.
  void check(int32_t sub_group, int slot, uint64_t offset, std::span<const std::byte> data) const;

  // A slot's sums, by piece, 0 where none is known.
  std::span<const uint64_t> of_slot(int slot) const;
  // What the journal says of a sub-group's slot; all others are unknown from then on.
  void forget();
  void restore(int32_t sub_group, int slot, std::span<const uint64_t> sums);

 private:
  // Of a slot that others may be sealing.
  std::atomic_ref<uint64_t> sum(int slot, size_t piece) const {
    return std::atomic_ref(sums_[static_cast<size_t>(slot) * layout_.pieces() + piece]);
  }
  [[noreturn]] void fail(int32_t sub_group, int slot, size_t piece, uint64_t found) const;
  std::string whose(uint64_t sum, size_t piece) const;

  const SlotLayout& layout_;
  const std::string& path_;
  const bool on_;
  mutable std::vector<uint64_t> sums_;  // slot by slot; 0: unknown
};

}  // namespace strata::offload
