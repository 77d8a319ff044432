// What the transports between processes share. A trade is a flow of bytes each way with every peer,
// pushed on until all are through, under a watch over the others' lives (peer_watch.h).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/comm/peer_watch.h"
#include "engine/comm/socket.h"
#include "engine/comm/transport.h"

namespace strata::engine {

// What goes ahead of a trade's bytes, so that the other side knows what they are of.
struct CallMessage {
  Call call() const { return {verb, label.data(), bytes}; }

  Verb verb = Verb::make_communicator;
  std::array<char, 44> label = {};
  uint64_t bytes = 0;
};

class PeerTransport : public Transport {
 public:
  int rank() const final { return rank_; }
  int size() const final { return size_; }

  // The timeout counts from the last bytes that came or went.
  void trade(const Trade& trade) final;
  void check() const final { watch_->check(); }
  void abort(std::string_view reason) noexcept final;

 protected:
  PeerTransport(int rank, int size, double timeout_s)
      : rank_(rank), size_(size), timeout_s_(timeout_s) {}

  // Until it is called a trade that fails throws on this rank, and nobody is told.
  void watch_over(std::vector<Socket> peers) { watch_.emplace(std::move(peers)); }
  bool failed() const { return watch_->failed(); }
  // For the destructor: this rank makes no other trade.
  void leave() noexcept { watch_->leave(trades_); }

  double timeout_s() const { return timeout_s_; }

  // One trade's flows to and from `peer`, one trade at a time. `message` goes first and stays until
  // the trade is through.
  virtual void start(int peer, const CallMessage& message, const Trade& trade) = 0;
  // Pushes on what can move, and says whether anything did. Throws CommError.
  virtual bool advance(int peer) = 0;
  virtual bool done(int peer) const = 0;
  // Waits a little for something to move, which nothing did for quiet_ns. It may return early.
  virtual void pause(int64_t quiet_ns) = 0;
  // After a failure.
  virtual void give_up() noexcept = 0;

  // Throws CommError when the peer that sent `theirs` makes another call.
  void require_agreement(int peer, const CallMessage& theirs) const;

 private:
  void begin(const Trade& trade);
  void finish(const Trade& trade);
  bool advance_all();
  bool all_done() const;
  std::vector<int> missing() const;
  void throw_if_lost(const Call& call) const;

  const int rank_;
  const int size_;
  const double timeout_s_;
  CallMessage message_;  // of the trade under way
  uint64_t trades_ = 0;
  std::optional<PeerWatch> watch_;
};

}  // namespace strata::engine
