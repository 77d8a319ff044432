#include "engine/comm/device_communicator.h"

#include <fmt/format.h>

#include <chrono>
#include <thread>
#include <utility>

#include "engine/comm/deadline.h"
#include "strata/clock.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

// Between two looks at a trade under way; nobody waits for what they find but a lost run.
constexpr std::chrono::microseconds kLook(500);

}  // namespace

DeviceCommunicator::DeviceCommunicator(std::unique_ptr<Transport> transport,
                                       std::unique_ptr<Fabric> fabric, Queue& queue,
                                       ops::StateOps& ops, const CommunicatorOptions& options,
                                       TrafficSink& traffic)
    : TradingCommunicator(queue, ops),
      transport_(std::move(transport)),
      fabric_(std::move(fabric)),
      options_(options),
      traffic_(traffic),
      watch_(make_host_queue({.name = "comm watch"}, {}, traffic)) {}

// The watch ends first: it is what ends a queue that waits for ever.
DeviceCommunicator::~DeviceCommunicator() {
  watch_->finish();
  queue().finish();
}

std::string DeviceCommunicator::description() const {
  const bool is_fast = options_.reduction == ReductionChoice::fast;
  return fmt::format("{}, devices over {}{}", transport_->description(), fabric_->description(),
                     is_fast ? ", which adds up gradients" : "");
}

void DeviceCommunicator::reduce_scatter(const ReduceScatterSpans& spans, const TrafficTag& tag) {
  if (options_.reduction == ReductionChoice::exact) {
    return TradingCommunicator::reduce_scatter(spans, tag);
  }
  check(spans);
  if (spans.shard_numel == 0) return;
  const uint64_t shard_bytes = spans.shard_numel * size_bytes(spans.dtype);
  const bool widens = spans.dtype != DType::fp32;
  require(!widens || spans.scratch.size() >= shard_bytes,
          "reduce_scatter: the scratch has no room for a shard");
  const NetworkSum sum = {.call = {Verb::reduce_scatter, tag.label, shard_bytes},
                          .flat = spans.flat,
                          .out = widens ? static_cast<void*>(spans.scratch.data()) : spans.out,
                          .shard_numel = spans.shard_numel,
                          .dtype = spans.dtype};
  enqueue_watched(sum.call, tag, [&] { fabric_->reduce_scatter(queue(), sum); });
  if (!widens) return;
  ops().land_gradient(queue(), {.dst = spans.out,
                                .dst_dtype = DType::fp32,
                                .src = sum.out,
                                .src_dtype = sum.dtype,
                                .numel = sum.shard_numel,
                                .add = false});
}

void DeviceCommunicator::enqueue(const Trade& trade, const TrafficTag& tag) {
  enqueue_watched(trade.call, tag, [&] { fabric_->trade(queue(), trade); });
}

template <typename Ask>
void DeviceCommunicator::enqueue_watched(const Call& call, const TrafficTag& tag, const Ask& ask) {
  queue().run([this] {
    throw_if_lost();
    begin_ns_ = now_ns();
  });
  const Event reached = queue().record();
  // Before the fabric is asked: it may wait for peers that never come.
  watch_->run([this, call, reached] { watched([&] { meet(call, reached); }); });
  try {
    ask();
  } catch (const CommError& error) {
    transport_->abort(error.what());  // whom the watch tells: this rank as all others
  }
  queue().run([this, call, tag] {
    throw_if_lost();
    if (sent_bytes(call) == 0) return;
    traffic_.record({Activity::comm, tag, queue().name(), sent_bytes(call), begin_ns_, now_ns()});
  });
  const Event done = queue().record();
  watch_->run([this, call, done] { watched([&] { await(call, done); }); });
}

void DeviceCommunicator::exchange(std::span<const std::byte> mine, std::span<std::byte> all) {
  const Trade trade = exchange_of(mine, all);
  queue().synchronize();
  watch_->run([this, trade] {
    const int64_t begin_ns = now_ns();
    watched([&] { transport_->trade(trade); });
    if (sent_bytes(trade.call) == 0) return;
    traffic_.record(
        {Activity::comm, kExchangeTag, queue().name(), sent_bytes(trade.call), begin_ns, now_ns()});
  });
  watch_->synchronize();
}

void DeviceCommunicator::abort(std::string_view reason) noexcept { transport_->abort(reason); }

template <typename Work>
void DeviceCommunicator::watched(const Work& work) {
  try {
    work();
  } catch (...) {  // a failure of the queue's own work too: its peers are told elsewhere
    lose(std::current_exception());
    throw;
  }
}

// When this rank's device has come to the trade, until all have.
void DeviceCommunicator::meet(const Call& call, const Event& reached) {
  while (!reached.reached()) {
    transport_->check();
    std::this_thread::sleep_for(kLook);
  }
  transport_->trade({.call = call, .moves = false});
}

// All ranks have come: what is missing now is lost. Ends when all are through, so that nobody takes
// the fabric down under a slower rank.
void DeviceCommunicator::await(const Call& call, const Event& done) {
  const int64_t deadline_ns = deadline_ns_after(options_.timeout_s);
  while (!done.reached()) {
    transport_->check();
    const std::string failure = fabric_->failure();
    if (!failure.empty()) {
      transport_->abort(failure);
    } else if (now_ns() >= deadline_ns) {
      transport_->abort(fmt::format("{} ({}) did not end within {} s, though every rank came",
                                    name(call.verb), call.label, options_.timeout_s));
    } else {
      std::this_thread::sleep_for(kLook);
    }
  }
  transport_->trade({.call = call, .moves = false});
}

void DeviceCommunicator::lose(std::exception_ptr failure) {
  {
    const std::lock_guard lock(mutex_);
    if (failure_ == nullptr) failure_ = std::move(failure);
  }
  lost_.store(true, std::memory_order_release);
  fabric_->abort();
}

void DeviceCommunicator::throw_if_lost() {
  if (!lost_.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(mutex_);
  std::rethrow_exception(failure_);
}

}  // namespace strata::engine
