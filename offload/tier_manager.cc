#include "offload/tier_manager.h"

#include <fmt/format.h>

#include <algorithm>

#include "strata/error.h"

namespace strata::offload {

TierManager::TierManager(Device& device, const PlanSummary& plan) : device_(device) {
  for (const Reservation& reservation : plan.reservations) claims_.push_back({reservation, false});
}

TierManager::Claim& TierManager::find(std::string_view name, Tier tier_a, Tier tier_b) {
  const auto it = std::find_if(claims_.begin(), claims_.end(), [&](const Claim& claim) {
    return claim.reservation.name == name &&
           (claim.reservation.tier == tier_a || claim.reservation.tier == tier_b);
  });
  if (it == claims_.end()) throw Error(fmt::format("the plan reserves nothing named '{}'", name));
  if (it->claimed) throw Error(fmt::format("reservation '{}' is claimed twice", name));
  it->claimed = true;
  return *it;
}

Arena TierManager::claim(std::string_view name) {
  const std::lock_guard lock(mutex_);
  Arena arena;
  if (reserved_bytes(name) == 0) return arena;
  Claim& claim = find(name, Tier::device, Tier::host);
  const Reservation& reservation = claim.reservation;
  if (reservation.tier == Tier::device) {
    arena.block_ = device_.allocate(reservation.bytes);
  } else {
    arena.block_ = device_.allocate_pinned(reservation.bytes);
    host_bytes_ += reservation.bytes;
  }
  claim.data = arena.data();
  return arena;
}

std::span<std::byte> TierManager::claimed(std::string_view name) const {
  const std::lock_guard lock(mutex_);
  for (const Claim& claim : claims_) {
    if (claim.reservation.name == name && claim.data != nullptr) {
      return {claim.data, claim.reservation.bytes};
    }
  }
  return {};
}

uint64_t TierManager::reserved_bytes(std::string_view name) const {
  for (const Claim& claim : claims_) {
    if (claim.reservation.name == name) return claim.reservation.bytes;
  }
  return 0;
}

void TierManager::claim_disk(std::string_view name, uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  const Reservation& reservation = find(name, Tier::nvme, Tier::nvme).reservation;
  if (bytes != reservation.bytes) {
    throw Error(fmt::format("'{}' takes {} bytes of disk where the plan reserves {}", name, bytes,
                            reservation.bytes));
  }
  nvme_bytes_ += bytes;
}

std::array<uint64_t, kTierCount> TierManager::peak_bytes() const {
  const std::lock_guard lock(mutex_);
  return {device_.peak_bytes(), host_bytes_, nvme_bytes_};
}

}  // namespace strata::offload
