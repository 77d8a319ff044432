#include "kernels/device/host_device.h"

#include <atomic>
#include <functional>
#include <string>
#include <string_view>
#include <thread>

#include "kernels/device/host_memory.h"
#include "kernels/device/host_queue.h"
#include "kernels/device/memory_guard.h"
#include "kernels/device/memory_meter.h"
#include "kernels/device/page_spread.h"

namespace strata {
namespace {

// Queues of one seed must not sleep in step with each other.
QueueDelay delay_of(const HostDeviceOptions& options, const QueueOptions& queue, uint64_t number) {
  if (options.delay_seed == 0) return {};
  const uint64_t name_hash = std::hash<std::string_view>{}(queue.name);
  return {options.delay_seed ^ name_hash ^ number << 32, options.max_delay_us};
}

class HostDevice final : public Device {
 public:
  HostDevice(const HostDeviceOptions& options, TrafficSink& traffic)
      : options_(options),
        traffic_(traffic),
        spread_(options.memory_nodes),
        meter_(options.cap_bytes) {}

  DeviceKind kind() const override { return DeviceKind::host; }

  std::string description() const override {
    const unsigned cores = std::thread::hardware_concurrency();
    return "host, " + std::to_string(cores) + (cores == 1 ? " core" : " cores");
  }

  std::unique_ptr<Queue> create_queue(const QueueOptions& queue) override {
    return std::make_unique<HostQueue>(queue, delay_of(options_, queue, ++queues_created_),
                                       traffic_, options_.guard_memory ? &guard_ : nullptr);
  }

  MemoryBlock allocate(size_t bytes) override {
    if (bytes == 0) return {};
    meter_.reserve(bytes);
    MemoryBlock block = map_metered(bytes);
    if (options_.guard_memory) guard_.add(block.data(), bytes);
    return block;
  }

  // The host device copies from and to any memory at full speed.
  MemoryBlock allocate_pinned(size_t bytes) override {
    if (bytes == 0) return {};
    return MemoryBlock(map_resident(bytes, &spread_), bytes, nullptr, &release);
  }

  size_t cap_bytes() const override { return meter_.cap_bytes(); }
  size_t used_bytes() const override { return meter_.used_bytes(); }
  size_t peak_bytes() const override { return meter_.peak_bytes(); }

 private:
  MemoryBlock map_metered(size_t bytes) {
    try {
      return MemoryBlock(map_resident(bytes, &spread_), bytes, this, &release);
    } catch (...) {
      meter_.release(bytes);
      throw;
    }
  }

  // `owner` is the device whose cap the block counts against; null for pinned memory.
  static void release(void* owner, void* data, size_t bytes) noexcept {
    auto* const device = static_cast<HostDevice*>(owner);
    if (device != nullptr && device->options_.guard_memory) device->guard_.remove(data);
    unmap_resident(data, bytes);
    if (device != nullptr) device->meter_.release(bytes);
  }

  const HostDeviceOptions options_;
  TrafficSink& traffic_;
  const PageSpread spread_;
  MemoryMeter meter_;
  MemoryGuard guard_;
  std::atomic<uint64_t> queues_created_ = 0;
};

}  // namespace

std::unique_ptr<Device> make_host_device(const HostDeviceOptions& options, TrafficSink& traffic) {
  return std::make_unique<HostDevice>(options, traffic);
}

std::unique_ptr<Queue> make_host_queue(const QueueOptions& queue, const HostDeviceOptions& options,
                                       TrafficSink& traffic) {
  return std::make_unique<HostQueue>(queue, delay_of(options, queue, 0), traffic);
}

}  // namespace strata
