// Where ranks that are threads of one process meet.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/comm/transport.h"

namespace strata::engine {

// The place where the ranks of one communicator show each other their sides of a trade. A trade is
// two meetings: behind the first all sides are to be seen, behind the second nobody looks any more.
//
// Every rank uses it from one thread at a time; fail() is for any thread. Nothing is allocated
// after construction but the text of a failure.
class LocalMeeting {
 public:
  LocalMeeting(int size, double timeout_s);

  int size() const { return static_cast<int>(seats_.size()); }

  // Shows `trade` to the others and waits for all of theirs. From here to close() side_of() every
  // rank, and the bytes it gives, may be read.
  //
  // Both throw CommError when the run has failed, with the first failure's text, and only when
  // nobody reads any more: the caller may free what it gave. close() does not where all are
  // through.
  void open(int rank, const Trade& trade);
  void close(int rank);

  const Trade& side_of(int rank) const { return seats_[rank].trade; }

  // Ends the run for everybody with CommError(text); the first text stays.
  void fail(std::string_view text) noexcept;
  // Throws the failure, once there is one.
  void check();
  // Whoever waits for `rank` from now on fails. Its bytes are not read any more.
  void leave(int rank) noexcept;

 private:
  struct Seat {
    Trade trade;            // written by its rank before it comes to a first meeting
    uint64_t meetings = 0;  // that the rank has come to
    bool left = false;
  };

  void meet(std::unique_lock<std::mutex>& lock, int rank);
  std::vector<int> missing_at(uint64_t meeting) const;
  int first_to_disagree_with(int rank) const;
  void set_failure(std::string_view text);
  void throw_if_failed(std::unique_lock<std::mutex>& lock);

  const double timeout_s_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Protected by mutex_; a trade may also be read between open() and close().
  std::vector<Seat> seats_;
  int readers_ = 0;  // ranks between open() and close()
  bool failed_ = false;
  std::string failure_;
};

// What World::group points to: makes the k-th communicators of all ranks meet in one place.
// Thread-safe.
class LocalGroup {
 public:
  explicit LocalGroup(int size) : joined_(size) {}

  int size() const { return static_cast<int>(joined_.size()); }

  // The place for this rank's next communicator. The timeout is that of the first rank to ask.
  std::shared_ptr<LocalMeeting> next_meeting(int rank, double timeout_s);

 private:
  std::mutex mutex_;
  // Protected by mutex_.
  std::vector<uint64_t> joined_;                        // meetings each rank was given
  std::deque<std::shared_ptr<LocalMeeting>> unfilled_;  // given to some ranks, not yet to all
  uint64_t given_to_all_ = 0;
};

}  // namespace strata::engine
