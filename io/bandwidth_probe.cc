#include "io/bandwidth_probe.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <new>

#include "strata/clock.h"
#include "strata/log.h"

namespace strata::io {
namespace {

constexpr int64_t kPassNs = 120'000'000;  // three passes and their flushes
constexpr uint64_t kMaxFileBytes = 64 << 20;
constexpr uint64_t kPieceBytes = 1 << 20;
constexpr size_t kPieces = 8;  // under way
constexpr std::align_val_t kAlignment{4096};

struct Freed {
  void operator()(std::byte* data) const { ::operator delete[](data, kAlignment); }
};

struct Pass {
  uint64_t bytes = 0;
  double seconds = 0;
};

// One file, walked from its beginning with kPieces requests under way.
class Walk {
 public:
  Walk(IoEngine& engine, const BlockFile& file)
      : engine_(engine), file_(file), data_(new (kAlignment) std::byte[kPieces * kPieceBytes]()) {}

  // Up to `limit` bytes, as far as the time goes; what is written is durable at the end.
  Pass run(Op op, uint64_t limit) {
    const int64_t begin_ns = now_ns();
    Pass pass;
    for (size_t i = 0; i < kPieces; ++i) start(op, i, limit, pass);
    std::array<IoRequest*, kPieces> done;
    while (engine_.in_flight() > 0) {
      const size_t count = engine_.reap(done, std::chrono::milliseconds(-1));
      for (size_t i = 0; i < count; ++i) finish(*done[i]);
      const bool time_left = now_ns() - begin_ns < kPassNs;
      for (size_t i = 0; failed_ == nullptr && time_left && i < count; ++i) {
        start(op, static_cast<size_t>(done[i] - requests_.data()), limit, pass);
      }
    }
    if (failed_ == nullptr && op == Op::write) flush();
    if (failed_ != nullptr) failed_->throw_if_failed();
    pass.seconds = seconds_since(begin_ns);
    return pass;
  }

 private:
  void start(Op op, size_t piece, uint64_t limit, Pass& pass) {
    const uint64_t bytes = std::min(kPieceBytes, limit - pass.bytes);
    if (bytes == 0) return;
    IoRequest& request = requests_[piece];
    request = {};
    request.op = op;
    request.file = &file_;
    request.offset = pass.bytes;
    request.data = data_.get() + piece * kPieceBytes;
    request.bytes = bytes;
    pass.bytes += bytes;
    engine_.submit(request);
  }

  void flush() {
    IoRequest& request = requests_.front();
    request = {};
    request.op = Op::flush;
    request.file = &file_;
    engine_.submit(request);
    std::array<IoRequest*, 1> done;
    while (engine_.in_flight() > 0) engine_.reap(done, std::chrono::milliseconds(-1));
    finish(request);
  }

  void finish(const IoRequest& request) {
    if (!request.ok()) failed_ = &request;
  }

  IoEngine& engine_;
  const BlockFile& file_;
  const std::unique_ptr<std::byte[], Freed> data_;
  std::array<IoRequest, kPieces> requests_;
  const IoRequest* failed_ = nullptr;  // one of them, left alone from then on
};

}  // namespace

double probe_bandwidth(IoEngine& engine, const std::string& directory, uint64_t bytes,
                       const BlockFileOptions& options) {
  NullLogSink silent;  // the file that is probed for will say it
  const uint64_t most = std::clamp(bytes / kPieceBytes * kPieceBytes, kPieceBytes, kMaxFileBytes);
  const BlockFile file = BlockFile::create_scratch(directory, most, options, silent);
  Walk walk(engine, file);
  // Blocks are slower the first time they are written, and then never again.
  const uint64_t touched = walk.run(Op::write, most).bytes;
  const Pass write = walk.run(Op::write, touched);
  const Pass read = walk.run(Op::read, write.bytes);
  const double seconds_per_byte = write.seconds / static_cast<double>(write.bytes) +
                                  read.seconds / static_cast<double>(read.bytes);
  return 2 / seconds_per_byte;
}

}  // namespace strata::io
