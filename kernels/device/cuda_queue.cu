#include <algorithm>
#include <cstring>
#include <string>

#include "kernels/device/copy_link.h"
#include "kernels/device/cuda_error.cuh"
#include "kernels/device/cuda_queue.cuh"
#include "kernels/device/profiler_range.h"
#include "strata/clock.h"
#include "strata/error.h"

namespace strata {
namespace {

// The two host functions around a wait take some microseconds themselves; a gap below this is
// theirs.
constexpr int64_t kShortestWaitNs = 50'000;

cudaMemcpyKind cuda_kind(CopyDirection direction) {
  switch (direction) {
    case CopyDirection::host_to_device:
      return cudaMemcpyHostToDevice;
    case CopyDirection::device_to_host:
      return cudaMemcpyDeviceToHost;
    case CopyDirection::device_to_device:
      return cudaMemcpyDeviceToDevice;
    case CopyDirection::host_to_host:
      return cudaMemcpyHostToHost;
  }
  return cudaMemcpyDefault;
}

}  // namespace

// Keeps the event behind `point` from being recorded again while a CUDA call uses it.
class CudaQueue::EventUse {
 public:
  EventUse(const CudaQueue& queue, uint64_t point) : queue_(queue) {
    const std::lock_guard lock(queue_.mutex_);
    if (point <= queue_.passed_) return;
    slot_ = &queue_.slots_[point % kQueueDepth];
    ++slot_->users;
  }
  ~EventUse() {
    if (slot_ == nullptr) return;
    {
      const std::lock_guard lock(queue_.mutex_);
      --slot_->users;
    }
    queue_.event_unused_.notify_all();
  }
  EventUse(const EventUse&) = delete;
  EventUse& operator=(const EventUse&) = delete;

  // Null when the point has passed.
  cudaEvent_t event() const { return slot_ == nullptr ? nullptr : slot_->event.get(); }

 private:
  const CudaQueue& queue_;
  Slot* slot_ = nullptr;
};

CudaQueue::CudaQueue(const QueueOptions& options, int ordinal, TrafficSink& traffic)
    : name_(options.name),
      ordinal_(ordinal),
      traffic_(traffic),
      slots_(std::make_unique<Slot[]>(kQueueDepth)),
      gate_(traffic) {
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
  stream_.reset(stream);
  for (uint64_t i = 0; i < kQueueDepth; ++i) {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync),
               "creating an event");
    slots_[i].queue = this;
    slots_[i].event.reset(event);
  }
}

CudaQueue::~CudaQueue() { finish(); }

void CudaQueue::run(HostTask task) { enqueue(std::move(task), work_); }

void CudaQueue::enqueue(HostTask task, const TrafficTag& work, bool waits) {
  Slot& slot = next_slot(work);
  slot.waits = waits;
  slot.task = std::move(task);
  check(cudaLaunchHostFunc(stream_.get(), &run_slot, &slot), "launching a host function");
  finish_slot(slot);
}

void CudaQueue::wait(const Event& event, const TrafficTag& tag) {
  if (event.queue() == nullptr || event.queue() == this || passed_or_failed(event)) return;
  mark();
  if (const auto* other = dynamic_cast<const CudaQueue*>(event.queue())) {
    const uint64_t point = event.point();
    wait_for_stream(*other, point);
    enqueue(
        [this, other, point, tag] {
          report_wait(tag);
          other->fault_.throw_if_behind(point);
        },
        tag, /*waits=*/true);
  } else {
    const uint64_t number = gate_.hold(stream_.get(), event);
    enqueue(
        [this, number, tag] {
          report_wait(tag);
          gate_.throw_if_failed(number);
        },
        tag, /*waits=*/true);
  }
}

void CudaQueue::copy(void* dst, const void* src, size_t bytes, CopyDirection direction,
                     const TrafficTag& tag) {
  // What is on the stream already cannot be skipped when it is poisoned; what comes later can.
  if (bytes == 0 || fault_.happened()) return;
  if (direction == CopyDirection::host_to_host) {
    // CUDA would do it at once, out of order.
    run([=] { std::memcpy(dst, src, bytes); });
    return;
  }
  const std::optional<Activity> link = link_of(direction);
  if (link) mark();
  const ProfilerRange range(tag);
  Slot& slot = next_slot(tag);
  check(cudaMemcpyAsync(dst, src, bytes, cuda_kind(direction), stream_.get()), "copying");
  finish_slot(slot);
  if (link) {
    run([this, activity = *link, tag, bytes] {
      traffic_.record({activity, tag, name_, bytes, mark_ns_, now_ns()});
    });
  }
}

void CudaQueue::fill_zero(void* dst, size_t bytes) {
  if (bytes == 0 || fault_.happened()) return;
  Slot& slot = next_slot(work_);
  check(cudaMemsetAsync(dst, 0, bytes, stream_.get()), "filling with zeros");
  finish_slot(slot);
}

uint64_t CudaQueue::record_point() { return finish_slot(next_slot(work_)); }

bool CudaQueue::point_reached(uint64_t point) const {
  select_device();
  {
    const EventUse use(*this, point);
    if (use.event() != nullptr) {
      const cudaError_t status = cudaEventQuery(use.event());
      if (status == cudaErrorNotReady) {
        cudaGetLastError();  // an answer, not an error that the next check should find
        return false;
      }
      check(status, "asking for an event");
    }
  }
  fault_.throw_if_behind(point);
  return true;
}

void CudaQueue::wait_for_point(uint64_t point) const {
  await_point(point);
  fault_.throw_if_behind(point);
}

// Blocks until the point has passed, failed or not; throws what CUDA itself reports, and where the
// queue is abandoned why.
void CudaQueue::await_point(uint64_t point) const {
  select_device();
  const EventUse use(*this, point);
  if (use.event() == nullptr) return;
  if (abandoned_.load() && cudaEventQuery(use.event()) == cudaErrorNotReady) {
    cudaGetLastError();
    fault_.throw_if_behind(point);
  }
  check(cudaEventSynchronize(use.event()), "waiting for an event");
  const std::lock_guard lock(mutex_);
  passed_ = std::max(passed_, point);
}

// Notes what has passed since it was last asked, and looks at the first point that has not.
QueueStanding CudaQueue::standing() const {
  cudaSetDevice(ordinal_);
  const uint64_t issued = issued_.load(std::memory_order_acquire);
  QueueStanding standing;
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      standing.ended = passed_;
    }
    const uint64_t point = standing.ended + 1;
    if (point > issued) return standing;
    const EventUse use(*this, point);
    if (use.event() == nullptr) continue;
    const cudaError_t status = cudaEventQuery(use.event());
    if (status != cudaSuccess) {
      cudaGetLastError();
      const Slot& slot = slots_[point % kQueueDepth];
      standing.under_way = status == cudaErrorNotReady;  // or else whoever waits is told
      standing.waits = slot.waits;
      standing.work = slot.work;
      return standing;
    }
    const std::lock_guard lock(mutex_);
    passed_ = std::max(passed_, point);
  }
}

void CudaQueue::abandon(std::exception_ptr failure) noexcept {
  uint64_t point = 0;
  {
    const std::lock_guard lock(mutex_);
    point = passed_ + 1;
  }
  fault_.set(point, std::move(failure));
  abandoned_.store(true);
}

void CudaQueue::finish() noexcept {
  cudaSetDevice(ordinal_);
  cudaStreamSynchronize(stream_.get());
}

// CUDA's current device is a thread's; on a thread that has none, any call would start device 0.
void CudaQueue::select_device() const { check(cudaSetDevice(ordinal_), "selecting its device"); }

// The slot of the next point, once the point that used it before has passed.
CudaQueue::Slot& CudaQueue::next_slot(const TrafficTag& work) {
  select_device();
  const uint64_t point = issued_ + 1;
  if (point > kQueueDepth) await_point(point - kQueueDepth);
  Slot& slot = slots_[point % kQueueDepth];
  std::unique_lock lock(mutex_);
  event_unused_.wait(lock, [&] { return slot.users == 0; });
  slot.point = point;
  slot.work = work;
  slot.waits = false;
  return slot;
}

// Records the slot's event behind what was enqueued since next_slot().
uint64_t CudaQueue::finish_slot(Slot& slot) {
  check(cudaEventRecord(slot.event.get(), stream_.get()), "recording an event");
  return issued_ = slot.point;
}

void CUDART_CB CudaQueue::run_slot(void* data) noexcept {
  Slot& slot = *static_cast<Slot*>(data);
  CudaQueue& queue = *slot.queue;
  if (!queue.fault_.happened()) {
    try {
      slot.task();
    } catch (...) {
      queue.fault_.set(slot.point, std::current_exception());
    }
  }
  slot.task.reset();
}

// A failed event poisons this queue from its next point on.
bool CudaQueue::passed_or_failed(const Event& event) {
  try {
    return event.reached();
  } catch (...) {
    fault_.set(issued_ + 1, std::current_exception());
    return true;
  }
}

void CudaQueue::mark() {
  run([this] { mark_ns_ = now_ns(); });
}

void CudaQueue::wait_for_stream(const CudaQueue& other, uint64_t point) {
  const EventUse use(other, point);
  if (use.event() == nullptr) return;
  check(cudaStreamWaitEvent(stream_.get(), use.event(), 0), "waiting for a stream");
}

void CudaQueue::report_wait(const TrafficTag& tag) {
  const int64_t end_ns = now_ns();
  if (end_ns - mark_ns_ < kShortestWaitNs) return;
  traffic_.record({Activity::wait, tag, name_, 0, mark_ns_, end_ns});
}

// CUDA reports a failure of the device at any later call: it poisons the queue from the first point
// that is not known to have passed.
void CudaQueue::check(cudaError_t status, const char* doing) const {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  const std::string where = std::string("queue '") + name_ + "', " + doing;
  const std::exception_ptr error =
      std::make_exception_ptr(DeviceError(cuda_error_text(status, where)));
  uint64_t point = 0;
  {
    const std::lock_guard lock(mutex_);
    point = passed_ + 1;
  }
  fault_.set(point, error);
  std::rethrow_exception(error);
}

}  // namespace strata
