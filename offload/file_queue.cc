#include "offload/file_queue.h"

#include <utility>

#include "kernels/device/poison.h"
#include "strata/error.h"

namespace strata::offload {
namespace {

constexpr uint64_t kAlignBytes = 4096;
constexpr TrafficTag kRingWait = {StateKind::other, -1, "transfer waits for room"};

}  // namespace

FileQueue::FileQueue(Pump& pump, std::unique_ptr<Queue> queue, std::span<std::byte> ring)
    : pump_(pump), queue_(std::move(queue)), ring_(ring) {}

// Parts follow each other in the ring as they do in number, so that those in the way of a new one
// are the oldest.
std::byte* FileQueue::claim(uint64_t bytes, Queue& first) {
  require(bytes <= ring_.size(), "a transfer fits into its ring");
  const auto retire = [&] {
    first.wait(part(oldest_).done, kRingWait);
    ++oldest_;
  };
  uint64_t begin = end_;
  if (begin + bytes > ring_.size()) {
    while (oldest_ < next_ && part(oldest_).begin >= end_) retire();
    begin = 0;
  }
  end_ = begin + (bytes + kAlignBytes - 1) / kAlignBytes * kAlignBytes;
  const auto in_the_way = [&](const Part& p) { return p.begin < end_ && begin < p.end; };
  while (oldest_ < next_ && (next_ - oldest_ == kParts || in_the_way(part(oldest_)))) retire();
  part(next_++) = {begin, end_, {}};
  poison(first, ring_.data() + begin, bytes);
  return ring_.data() + begin;
}

void FileQueue::release(const Event& done) { part(next_ - 1).done = done; }

void FileQueue::transfer(const IoCommand& command) {
  queue_->run([this, command] { pump_.submit(command).wait(); });
}

}  // namespace strata::offload
