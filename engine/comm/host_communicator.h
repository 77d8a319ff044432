// The verbs in host memory, over any transport. The arithmetic of a reduction is here alone, so all
// transports give the same bits.
#pragma once

#include <memory>

#include "engine/comm/communicator.h"
#include "engine/comm/transport.h"

namespace strata::engine {

class HostCommunicator final : public Communicator {
 public:
  // `queue`, `ops` and `traffic` must outlive the communicator, which waits for the queue's work.
  HostCommunicator(std::unique_ptr<Transport> transport, Queue& queue, ops::StateOps& ops,
                   TrafficSink& traffic);
  ~HostCommunicator() override;
  HostCommunicator(const HostCommunicator&) = delete;
  HostCommunicator& operator=(const HostCommunicator&) = delete;

  int rank() const override { return transport_->rank(); }
  int size() const override { return transport_->size(); }
  std::string description() const override { return transport_->description(); }

  void all_gather(std::byte* flat, uint64_t shard_bytes, const TrafficTag& tag) override;
  void reduce_scatter(const ReduceScatterSpans& spans, const TrafficTag& tag) override;
  void exchange(std::span<const std::byte> mine, std::span<std::byte> all) override;
  void abort(std::string_view reason) noexcept override { transport_->abort(reason); }

 private:
  // A part of every shard: elements [begin, begin + numel) of it.
  struct Piece {
    int64_t begin = 0;
    int64_t numel = 0;
  };

  int64_t piece_numel(const ReduceScatterSpans& spans) const;
  Trade trade_of(const Piece& piece, const ReduceScatterSpans& spans, const char* label) const;
  void enqueue(const Trade& trade, const TrafficTag& tag);
  void enqueue_sum(const Piece& piece, const ReduceScatterSpans& spans, const Trade& trade);

  const std::unique_ptr<Transport> transport_;
  Queue& queue_;
  ops::StateOps& ops_;
  TrafficSink& traffic_;
};

}  // namespace strata::engine
