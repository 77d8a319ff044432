#include "engine/comm/peer_watch.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <span>
#include <utility>

#include "strata/clock.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

// A word fits any socket's buffer, so only a peer that is stopped and full takes this long.
constexpr int64_t kSendTimeout_ns = 100'000'000;

// How long to wait for the others to close too. Closing first could reset the connection and lose
// what is still unread on the other side.
constexpr std::chrono::seconds kLinger(1);

}  // namespace

PeerWatch::PeerWatch(std::vector<Socket> peers)
    : size_(static_cast<int>(peers.size())),
      states_(std::make_unique<Peer[]>(peers.size())),
      polled_(peers.size()),
      sockets_(std::move(peers)),
      thread_(&PeerWatch::watch, this) {}

PeerWatch::~PeerWatch() {
  {
    std::unique_lock lock(mutex_);
    if (said_) {
      shut_down(SHUT_WR);
      ended_changed_.wait_for(lock, kLinger, [this] { return ended_; });
    }
    shut_down(SHUT_RDWR);  // wakes the thread
  }
  thread_.join();
}

void PeerWatch::check() const {
  if (failed()) throw CommError(failure_);
}

bool PeerWatch::left_before(int peer, uint64_t trade) const {
  return states_[peer].left_after.load(std::memory_order_acquire) < trade;
}

void PeerWatch::fail(std::string_view text) noexcept {
  text = text.substr(0, kMaxFailureBytes);
  const std::lock_guard lock(mutex_);
  if (said_) return;
  say({.word = Word::failure, .text_bytes = static_cast<uint32_t>(text.size())}, text);
  failure_ = text;
  failed_.store(true, std::memory_order_release);
}

void PeerWatch::leave(uint64_t trades) noexcept {
  const std::lock_guard lock(mutex_);
  if (!said_) say({.word = Word::bye, .trades = trades}, {});
}

// Under mutex_. A peer that cannot be told has ended, or ends by its own timeout.
void PeerWatch::say(const Header& header, std::string_view text) {
  said_ = true;
  std::array<std::byte, sizeof(Header) + kMaxFailureBytes> message;
  std::memcpy(message.data(), &header, sizeof(header));
  if (!text.empty()) std::memcpy(message.data() + sizeof(header), text.data(), text.size());
  const std::span bytes = std::span(message).first(sizeof(header) + text.size());
  for (const Socket& socket : sockets_) {
    if (socket.is_open()) socket.send(bytes, now_ns() + kSendTimeout_ns);
  }
}

// Under mutex_.
void PeerWatch::shut_down(int how) {
  for (const Socket& socket : sockets_) {
    if (socket.is_open()) shutdown(socket.fd(), how);
  }
}

void PeerWatch::watch() noexcept {
  while (anybody_there()) {
    for (int peer = 0; peer < size_; ++peer) polled_[peer] = {sockets_[peer].fd(), POLLIN, 0};
    poll(polled_.data(), polled_.size(), -1);  // after a signal, nothing is ready
    for (int peer = 0; peer < size_; ++peer) {
      if (polled_[peer].fd >= 0 && polled_[peer].revents != 0) read_from(peer);
    }
  }
  const std::lock_guard lock(mutex_);
  ended_ = true;
  ended_changed_.notify_all();
}

bool PeerWatch::anybody_there() const {
  return std::any_of(sockets_.begin(), sockets_.end(),
                     [](const Socket& socket) { return socket.is_open(); });
}

void PeerWatch::read_from(int peer) {
  Peer& state = states_[peer];
  if (state.heard) state.received_bytes = 0;  // nothing of interest comes any more
  const std::span room = std::span(state.inbox).subspan(state.received_bytes);
  const ssize_t received = recv(sockets_[peer].fd(), room.data(), room.size(), MSG_DONTWAIT);
  if (received < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK)) return;
  if (received <= 0) return lose(peer);
  state.received_bytes += received;
  if (!state.heard && !understand(peer)) lose(peer);
}

// False when what came cannot be a word.
bool PeerWatch::understand(int peer) {
  Peer& state = states_[peer];
  Header header;
  if (state.received_bytes < sizeof(header)) return true;  // the rest is on its way
  std::memcpy(&header, state.inbox.data(), sizeof(header));
  if (header.text_bytes > kMaxFailureBytes) return false;
  if (state.received_bytes < sizeof(header) + header.text_bytes) return true;
  state.heard = true;
  switch (header.word) {
    case Word::bye:
      state.left_after.store(header.trades, std::memory_order_release);
      return true;
    case Word::failure:
      fail({reinterpret_cast<const char*>(state.inbox.data() + sizeof(header)), header.text_bytes});
      return true;
  }
  state.heard = false;
  return false;
}

void PeerWatch::lose(int peer) {
  if (!states_[peer].heard) fail(died_text(peer));
  const std::lock_guard lock(mutex_);
  sockets_[peer].close();
}

}  // namespace strata::engine
