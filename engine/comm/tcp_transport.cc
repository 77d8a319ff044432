#include "engine/comm/tcp_transport.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/comm/peer_mesh.h"
#include "engine/comm/peer_transport.h"
#include "engine/comm/rendezvous.h"

namespace strata::engine {
namespace {

// One direction of a trade with one peer: its call, then its bytes.
class Flow {
 public:
  void start(const CallMessage& message, std::byte* data, uint64_t bytes) {
    message_ = message;
    data_ = data;
    bytes_ = bytes;
    moved_bytes_ = 0;
  }

  const CallMessage& message() const { return message_; }
  bool has_bytes() const { return bytes_ > 0; }
  bool at_message() const { return moved_bytes_ < sizeof(message_); }
  bool done() const { return moved_bytes_ == sizeof(message_) + bytes_; }

  // What moves next, of the call or of the bytes; so much at most that its peers have their turn.
  std::span<std::byte> next() {
    constexpr uint64_t kTurn_bytes = uint64_t{1} << 20;
    if (at_message()) {
      return std::as_writable_bytes(std::span(&message_, 1)).subspan(moved_bytes_);
    }
    const uint64_t at = moved_bytes_ - sizeof(message_);
    return {data_ + at, std::min(bytes_ - at, kTurn_bytes)};
  }
  void count(size_t moved_bytes) { moved_bytes_ += moved_bytes; }

 private:
  CallMessage message_;  // ours on its way, or theirs
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
  uint64_t moved_bytes_ = sizeof(CallMessage);  // of both; nothing is under way
};

class TcpTransport final : public PeerTransport {
 public:
  TcpTransport(const World& world, double timeout_s)
      : PeerTransport(world.rank, world.size, timeout_s), peers_(world.size) {
    Rendezvous rendezvous(world, timeout_s);
    address_ = rendezvous.address();
    const MeshOptions mesh = {rank(), size(), rendezvous.one_machine(), timeout_s};
    const Announce announce = [&](std::span<const std::byte> mine, std::span<std::byte> all) {
      rendezvous.all_gather(mine, all);
    };
    std::vector<Socket> sockets = connect_peers(mesh, announce);
    for (int peer = 0; peer < size(); ++peer) peers_[peer].socket = std::move(sockets[peer]);
    polled_.reserve(peers_.size());
    watch_over(connect_peers(mesh, announce));
  }

  ~TcpTransport() override { leave(); }

  std::string description() const override {
    return fmt::format("{} ranks over TCP, met at {}", size(), address_);
  }

 private:
  struct Peer {
    Socket socket;
    bool ended = false;  // the connection; the watch will say why
    Flow give, take;
  };

  void start(int peer, const CallMessage& message, const Trade& trade) override {
    const uint64_t bytes = trade.moved_bytes();
    peers_[peer].take.start({}, trade.taken_from(peer), bytes);
    peers_[peer].give.start(message, const_cast<std::byte*>(trade.given_to(peer)), bytes);
  }

  bool advance(int peer) override {
    const bool taken = take_from(peer);
    return give_to(peers_[peer]) || taken;
  }

  static bool give_to(Peer& peer) {
    if (peer.ended || peer.give.done()) return false;
    const bool more = peer.give.at_message() && peer.give.has_bytes();
    return count(peer.socket.send_some(peer.give.next(), more), peer, peer.give);
  }

  bool take_from(int rank) {
    Peer& peer = peers_[rank];
    if (peer.ended || peer.take.done()) return false;
    const bool was_at_message = peer.take.at_message();
    const bool moved = count(peer.socket.receive_some(peer.take.next()), peer, peer.take);
    if (was_at_message && !peer.take.at_message()) require_agreement(rank, peer.take.message());
    return moved;
  }

  static bool count(std::optional<size_t> moved_bytes, Peer& peer, Flow& flow) {
    peer.ended = !moved_bytes.has_value();
    flow.count(moved_bytes.value_or(0));
    return moved_bytes.value_or(0) > 0;
  }

  bool done(int peer) const override {
    return peers_[peer].give.done() && peers_[peer].take.done();
  }

  // Sleeps until a peer sends or has room, and no longer than the watch may wait to be asked.
  void pause(int64_t /*quiet_ns*/) override {
    constexpr int kLook_ms = 10;
    polled_.clear();
    for (const Peer& peer : peers_) {
      const int events = (peer.give.done() ? 0 : POLLOUT) | (peer.take.done() ? 0 : POLLIN);
      if (!peer.ended && events != 0) {
        polled_.push_back({peer.socket.fd(), static_cast<short>(events), 0});
      }
    }
    poll(polled_.data(), polled_.size(), kLook_ms);
  }

  // What is half sent stays so: there is no other trade.
  void give_up() noexcept override {}

  std::string address_;
  std::vector<Peer> peers_;  // by rank; this rank's own has no socket and is never started
  std::vector<pollfd> polled_;
};

}  // namespace

std::unique_ptr<Transport> make_tcp_transport(const World& world,
                                              const TcpTransportOptions& options) {
  return std::make_unique<TcpTransport>(world, options.timeout_s);
}

}  // namespace strata::engine
