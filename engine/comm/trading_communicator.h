// The verbs as trades on a queue. The arithmetic of a reduction is here alone, so that all ways to
// trade give the same bits.
#pragma once

#include <cstdint>

#include "engine/comm/communicator.h"
#include "engine/comm/transport.h"

namespace strata::engine {

class TradingCommunicator : public Communicator {
 public:
  void all_gather(std::byte* flat, uint64_t shard_bytes, const TrafficTag& tag) override;
  void reduce_scatter(const ReduceScatterSpans& spans, const TrafficTag& tag) override;

 protected:
  // `queue` and `ops` must outlive the communicator.
  TradingCommunicator(Queue& queue, ops::StateOps& ops) : queue_(queue), ops_(ops) {}

  // Enqueues a trade, which reports the bytes that it sends.
  virtual void enqueue(const Trade& trade, const TrafficTag& tag) = 0;

  Queue& queue() const { return queue_; }
  ops::StateOps& ops() const { return ops_; }
  uint64_t sent_bytes(const Call& call) const {
    return static_cast<uint64_t>(size() - 1) * call.bytes;
  }
  static void check(const ReduceScatterSpans& spans);
  // The trade behind exchange(), when its arguments fit each other; this rank's own values are in
  // place.
  Trade exchange_of(std::span<const std::byte> mine, std::span<std::byte> all) const;

 private:
  // A part of every shard: elements [begin, begin + numel) of it.
  struct Piece {
    int64_t begin = 0;
    int64_t numel = 0;
  };

  int64_t piece_numel(const ReduceScatterSpans& spans) const;
  Trade trade_of(const Piece& piece, const ReduceScatterSpans& spans, const char* label) const;
  void enqueue_sum(const Piece& piece, const ReduceScatterSpans& spans, const Trade& trade);

  Queue& queue_;
  ops::StateOps& ops_;
};

inline constexpr TrafficTag kExchangeTag = {StateKind::other, -1, "exchange"};

}  // namespace strata::engine
