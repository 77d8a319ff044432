#include "engine/comm/local_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "engine/comm/deadline.h"
#include "engine/comm/failure_text.h"
#include "strata/error.h"
#include "strata/world.h"

namespace strata {

std::vector<World> World::local(int size) {
  if (size < 1) throw ConfigError(fmt::format("a world of {} ranks: give it at least one", size));
  const auto group = std::make_shared<engine::LocalGroup>(size);
  std::vector<World> worlds;
  for (int rank = 0; rank < size; ++rank) {
    worlds.push_back(
        {.rank = rank, .size = size, .local_rank = rank, .local_size = size, .group = group});
  }
  return worlds;
}

}  // namespace strata

namespace strata::engine {

LocalMeeting::LocalMeeting(int size, double timeout_s) : timeout_s_(timeout_s), seats_(size) {}

void LocalMeeting::open(int rank, const Trade& trade) {
  std::unique_lock lock(mutex_);
  seats_[rank].trade = trade;
  meet(lock, rank);
  // Who was told before all had come is gone, and its bytes with it.
  throw_if_failed(lock);
  if (const int other = first_to_disagree_with(rank); other >= 0) {
    set_failure(mismatch_text({rank, trade.call}, {other, seats_[other].trade.call}));
    throw_if_failed(lock);
  }
  ++readers_;
}

void LocalMeeting::close(int rank) {
  std::unique_lock lock(mutex_);
  --readers_;
  meet(lock, rank);
}

void LocalMeeting::fail(std::string_view text) noexcept {
  const std::lock_guard lock(mutex_);
  set_failure(text);
}

void LocalMeeting::leave(int rank) noexcept {
  const std::lock_guard lock(mutex_);
  seats_[rank].left = true;
  changed_.notify_all();
}

void LocalMeeting::check() {
  const std::lock_guard lock(mutex_);
  if (failed_) throw CommError(failure_);
}

void LocalMeeting::meet(std::unique_lock<std::mutex>& lock, int rank) {
  const uint64_t meeting = ++seats_[rank].meetings;
  const Call& call = seats_[rank].trade.call;
  changed_.notify_all();
  const std::chrono::steady_clock::time_point deadline(
      std::chrono::nanoseconds(deadline_ns_after(timeout_s_)));
  const auto came = [meeting](const Seat& seat) { return seat.meetings >= meeting; };
  const auto left = [&](const Seat& seat) { return seat.left && !came(seat); };
  while (!std::all_of(seats_.begin(), seats_.end(), came)) {
    throw_if_failed(lock);
    if (const auto gone = std::find_if(seats_.begin(), seats_.end(), left); gone != seats_.end()) {
      set_failure(left_text(static_cast<int>(gone - seats_.begin()), rank, call));
    } else if (std::chrono::steady_clock::now() >= deadline) {
      set_failure(stalled_text(missing_at(meeting), call, timeout_s_));
    } else {
      changed_.wait_until(lock, deadline);
    }
  }
}

std::vector<int> LocalMeeting::missing_at(uint64_t meeting) const {
  std::vector<int> missing;
  for (int rank = 0; rank < size(); ++rank) {
    if (seats_[rank].meetings < meeting) missing.push_back(rank);
  }
  return missing;
}

// Which rank makes another call than `rank`; -1 when all make the same.
int LocalMeeting::first_to_disagree_with(int rank) const {
  const Call& mine = seats_[rank].trade.call;
  for (int other = 0; other < size(); ++other) {
    if (!agree(mine, seats_[other].trade.call)) return other;
  }
  return -1;
}

void LocalMeeting::set_failure(std::string_view text) {
  if (failed_) return;
  failure_ = text;
  failed_ = true;
  changed_.notify_all();
}

void LocalMeeting::throw_if_failed(std::unique_lock<std::mutex>& lock) {
  if (!failed_) return;
  changed_.wait(lock, [this] { return readers_ == 0; });
  throw CommError(failure_);
}

std::shared_ptr<LocalMeeting> LocalGroup::next_meeting(int rank, double timeout_s) {
  const std::lock_guard lock(mutex_);
  const uint64_t number = joined_[rank]++;
  if (number == given_to_all_ + unfilled_.size()) {
    unfilled_.push_back(std::make_shared<LocalMeeting>(size(), timeout_s));
  }
  const std::shared_ptr<LocalMeeting> meeting = unfilled_[number - given_to_all_];
  while (!unfilled_.empty() && std::ranges::min(joined_) > given_to_all_) {
    unfilled_.pop_front();
    ++given_to_all_;
  }
  return meeting;
}

}  // namespace strata::engine
