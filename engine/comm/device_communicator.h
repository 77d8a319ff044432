// The verbs in device memory, over a fabric, with a transport beside it that watches.
//
// The fabric moves the bytes in the order of the queue. What it cannot do is say who is missing:
// a rank that is dead, late or makes another call leaves the others' devices waiting for ever. So
// on a thread of their own the ranks also meet over the transport, before each trade and behind it,
// without its bytes and without anybody's device waiting for that; the transport names the rank
// that does not come. Then the fabric is aborted, its work ends, and the queue is poisoned with the
// CommError.
#pragma once

#include <atomic>
#include <exception>
#include <memory>
#include <mutex>

#include "engine/comm/fabric.h"
#include "engine/comm/trading_communicator.h"
#include "kernels/device/host_device.h"

namespace strata::engine {

class DeviceCommunicator final : public TradingCommunicator {
 public:
  // `queue`, `ops` (of the queue's device) and `traffic` must outlive the communicator, which waits
  // for the queue's work.
  DeviceCommunicator(std::unique_ptr<Transport> transport, std::unique_ptr<Fabric> fabric,
                     Queue& queue, ops::StateOps& ops, const CommunicatorOptions& options,
                     TrafficSink& traffic);
  ~DeviceCommunicator() override;
  DeviceCommunicator(const DeviceCommunicator&) = delete;
  DeviceCommunicator& operator=(const DeviceCommunicator&) = delete;

  int rank() const override { return transport_->rank(); }
  int size() const override { return transport_->size(); }
  std::string description() const override;

  void reduce_scatter(const ReduceScatterSpans& spans, const TrafficTag& tag) override;
  void exchange(std::span<const std::byte> mine, std::span<std::byte> all) override;
  Queue& waiting_queue() override { return *watch_; }
  void abort(std::string_view reason) noexcept override;

 private:
  void enqueue(const Trade& trade, const TrafficTag& tag) override;
  // `ask` gives the fabric its work on the queue.
  template <typename Ask>
  void enqueue_watched(const Call& call, const TrafficTag& tag, const Ask& ask);
  // The watching thread's. What they throw ends the run here.
  template <typename Work>
  void watched(const Work& work);
  void meet(const Call& call, const Event& reached);
  void await(const Call& call, const Event& done);
  void lose(std::exception_ptr failure);
  void throw_if_lost();

  const std::unique_ptr<Transport> transport_;  // the watching thread's, but for abort()
  const std::unique_ptr<Fabric> fabric_;
  const CommunicatorOptions options_;
  TrafficSink& traffic_;
  int64_t begin_ns_ = 0;  // of the trade that the queue is at; the queue's

  std::atomic<bool> lost_ = false;
  std::mutex mutex_;
  std::exception_ptr failure_;  // protected by mutex_, set once

  const std::unique_ptr<Queue> watch_;  // last: its thread uses the rest
};

}  // namespace strata::engine
