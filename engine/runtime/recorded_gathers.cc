#include "engine/runtime/recorded_gathers.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "strata/error.h"

namespace strata::engine {

RecordedGathers::RecordedGathers(size_t units, size_t slots, bool ahead)
    : ahead_(ahead), holds_(units, 0), slot_of_(units, kNone), unit_in_(slots, kNone) {
  brought_.reserve(2);
}

std::span<const RecordedGathers::Bring> RecordedGathers::hold(int unit) {
  brought_.clear();
  if (slot_of_[static_cast<size_t>(unit)] == kNone) {
    const int slot = slot_for(0);
    if (slot == kNone) {
      throw ConfigError(
          fmt::format("{} units are held at a time: let go of one before the next, or raise "
                      "Options::held_units",
                      unit_in_.size()));
    }
    bring(unit, slot);
  }
  ++holds_[static_cast<size_t>(unit)];
  record(unit);
  if (ahead_ && next_ < record_.size()) {
    const int following = record_[next_];
    const int slot = slot_for(next_);
    const bool away = slot_of_[static_cast<size_t>(following)] == kNone;
    if (away && slot != kNone) bring(following, slot);
  }
  return brought_;
}

void RecordedGathers::let_go(int unit) { --holds_[static_cast<size_t>(unit)]; }

void RecordedGathers::start_again() {
  std::fill(slot_of_.begin(), slot_of_.end(), kNone);
  std::fill(unit_in_.begin(), unit_in_.end(), kNone);
  record_.resize(next_);
  next_ = 0;
}

void RecordedGathers::record(int unit) {
  if (next_ == record_.size() || record_[next_] != unit) {
    record_.resize(next_);
    record_.push_back(unit);
  }
  ++next_;
}

size_t RecordedGathers::next_use(int unit) const {
  const auto from = record_.begin() + static_cast<std::ptrdiff_t>(next_);
  return static_cast<size_t>(std::find(from, record_.end(), unit) - record_.begin());
}

int RecordedGathers::slot_for(size_t use) const {
  int best = kNone;
  size_t farthest = use;
  for (size_t slot = 0; slot < unit_in_.size(); ++slot) {
    const int unit = unit_in_[slot];
    if (unit == kNone) return static_cast<int>(slot);
    if (is_held(unit)) continue;
    const size_t used = next_use(unit);
    if (best == kNone ? used >= farthest : used > farthest) {
      best = static_cast<int>(slot);
      farthest = used;
    }
  }
  return best;
}

void RecordedGathers::bring(int unit, int slot) {
  int& in_slot = unit_in_[static_cast<size_t>(slot)];
  if (in_slot != kNone) slot_of_[static_cast<size_t>(in_slot)] = kNone;
  in_slot = unit;
  slot_of_[static_cast<size_t>(unit)] = slot;
  brought_.push_back({unit, slot});
}

}  // namespace strata::engine
