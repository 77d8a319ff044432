// The verbs in host memory, over any transport.
#pragma once

#include <memory>

#include "engine/comm/trading_communicator.h"

namespace strata::engine {

class HostCommunicator final : public TradingCommunicator {
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

  void exchange(std::span<const std::byte> mine, std::span<std::byte> all) override;
  Queue& waiting_queue() override { return queue(); }
  void abort(std::string_view reason) noexcept override { transport_->abort(reason); }

 private:
  void enqueue(const Trade& trade, const TrafficTag& tag) override;

  const std::unique_ptr<Transport> transport_;
  TrafficSink& traffic_;
};

}  // namespace strata::engine
