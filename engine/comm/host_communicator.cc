#include "engine/comm/host_communicator.h"

#include <utility>

#include "strata/clock.h"

namespace strata::engine {

HostCommunicator::HostCommunicator(std::unique_ptr<Transport> transport, Queue& queue,
                                   ops::StateOps& ops, TrafficSink& traffic)
    : TradingCommunicator(queue, ops), transport_(std::move(transport)), traffic_(traffic) {}

HostCommunicator::~HostCommunicator() { queue().finish(); }

void HostCommunicator::exchange(std::span<const std::byte> mine, std::span<std::byte> all) {
  enqueue(exchange_of(mine, all), kExchangeTag);
  queue().synchronize();
}

void HostCommunicator::enqueue(const Trade& trade, const TrafficTag& tag) {
  queue().run([this, trade, tag] {
    const int64_t begin_ns = now_ns();
    transport_->trade(trade);
    if (sent_bytes(trade.call) == 0) return;
    traffic_.record(
        {Activity::comm, tag, queue().name(), sent_bytes(trade.call), begin_ns, now_ns()});
  });
}

}  // namespace strata::engine
