// Sees at once when a process of the run dies, fails or leaves; MPI would wait for it for ever.
//
// There is a socket between every two ranks. Each side says one thing on it, its last: that it
// leaves, or why the run failed; then comes the end of the file. An end of file without a word is a
// death. Nobody relays: whoever leaves, rank 0 too, blinds no other. A rank that learns of a
// failure says it to everybody before it acts on it, so that its own end is never taken for the
// cause.
#pragma once

#include <poll.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "engine/comm/failure_text.h"
#include "engine/comm/socket.h"

namespace strata::engine {

// All calls but the constructor and destructor: any thread. A thread of its own reads the sockets,
// and ends when all of them have ended.
class PeerWatch {
 public:
  // `peers` by rank, connected; this rank's own is empty. Throws std::system_error where there is
  // no thread to be had.
  explicit PeerWatch(std::vector<Socket> peers);
  // Without leave() or a failure before it the others see a death. Otherwise waits a moment for
  // them to hear of it.
  ~PeerWatch();
  PeerWatch(const PeerWatch&) = delete;
  PeerWatch& operator=(const PeerWatch&) = delete;

  // Throws CommError with the text of the failure, once there is one. Takes no lock.
  void check() const;
  bool failed() const { return failed_.load(std::memory_order_acquire); }

  // Whether `peer` left before it came to trade number `trade`, counted from 1.
  bool left_before(int peer, uint64_t trade) const;

  // Ends the run everywhere with CommError(text), cut to kMaxFailureBytes. The first text stays.
  void fail(std::string_view text) noexcept;

  // Says that this rank has made `trades` trades and makes no other.
  void leave(uint64_t trades) noexcept;

 private:
  static constexpr uint64_t kStillHere = UINT64_MAX;

  enum class Word : uint32_t { bye = 1, failure = 2 };
  // What goes over a socket, followed by the text. All processes are of one build.
  struct Header {
    Word word = Word::bye;
    uint32_t text_bytes = 0;
    uint64_t trades = 0;  // with bye
  };

  // The watching thread's, but for `left_after`.
  struct Peer {
    std::array<std::byte, sizeof(Header) + kMaxFailureBytes> inbox;
    size_t received_bytes = 0;
    bool heard = false;                             // its word
    std::atomic<uint64_t> left_after = kStillHere;  // trades
  };

  void watch() noexcept;
  bool anybody_there() const;
  void read_from(int peer);
  bool understand(int peer);
  void lose(int peer);
  void say(const Header& header, std::string_view text);
  void shut_down(int how);

  const int size_;
  const std::unique_ptr<Peer[]> states_;  // by rank
  std::vector<pollfd> polled_;            // the watching thread's, by rank
  std::atomic<bool> failed_ = false;
  std::string failure_;  // fixed once failed_

  std::mutex mutex_;
  std::condition_variable ended_changed_;
  // Protected by mutex_. Sockets are closed by the watching thread alone, which so reads them
  // without it.
  std::vector<Socket> sockets_;
  bool said_ = false;  // this rank's word
  bool ended_ = false;

  std::thread thread_;
};

}  // namespace strata::engine
