// Hands out the plan's memory, and nothing else.
//
// The only client of the device's allocator. Every claim is a reservation of the plan, claimed
// once, under its name. After start nothing is claimed, so the steady state allocates nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device/device.h"
#include "strata/plan.h"

namespace strata::offload {

// A claimed block, returned to its tier when destroyed. Moves, does not copy.
class Arena {
 public:
  Arena() = default;

  std::byte* data() const { return block_.data(); }
  size_t bytes() const { return block_.bytes(); }
  std::span<std::byte> span() const { return {data(), bytes()}; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(block_.data());
  }

 private:
  friend class TierManager;
  MemoryBlock block_;
};

class TierManager {
 public:
  // `device` must outlive the manager and its arenas. The plan is within its budgets.
  TierManager(Device& device, const PlanSummary& plan);

  // Claims the reservation of this name in device or host memory. An empty arena when the plan
  // reserves no bytes under it. Throws Error for a name claimed twice or unknown to the plan.
  Arena claim(std::string_view name);

  // The memory of a reservation that has been claimed, empty for any other name. It holds as long
  // as its arena.
  std::span<std::byte> claimed(std::string_view name) const;

  // Bytes reserved under a name; 0 when the plan has no such reservation.
  uint64_t reserved_bytes(std::string_view name) const;

  // Notes disk space taken under a reservation of the nvme tier; checked against it.
  void claim_disk(std::string_view name, uint64_t bytes);

  // Most bytes held at one time, by Tier, as the allocators count.
  std::array<uint64_t, kTierCount> peak_bytes() const;

 private:
  struct Claim {
    Reservation reservation;
    bool claimed = false;
    std::byte* data = nullptr;
  };
  Claim& find(std::string_view name, Tier tier_a, Tier tier_b);

  Device& device_;
  mutable std::mutex mutex_;
  std::vector<Claim> claims_;
  uint64_t host_bytes_ = 0;
  uint64_t nvme_bytes_ = 0;
};

}  // namespace strata::offload
