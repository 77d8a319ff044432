// What the io tests share: aligned bytes, sinks that remember.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "io/io_backend.h"
#include "io/io_engine.h"
#include "strata/error.h"
#include "strata/log.h"
#include "strata/traffic.h"
#include "tests/temporary_directory.h"

namespace strata::io {

using testing_support::TemporaryDirectory;

// Zeroed bytes at a 4 KiB boundary.
class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = 4096;

  explicit AlignedBuffer(size_t bytes)
      : bytes_(bytes),
        data_(new (std::align_val_t(kAlignment)) std::byte[bytes](), Free{.owned = true}) {}
  // Part of a larger buffer, which must outlive this one.
  explicit AlignedBuffer(std::span<std::byte> part)
      : bytes_(part.size()), data_(part.data(), Free{.owned = false}) {}

  std::byte* data() const { return data_.get(); }
  size_t size() const { return bytes_; }
  std::span<std::byte> span() const { return {data_.get(), bytes_}; }
  void fill(std::byte value) const { std::memset(data(), static_cast<int>(value), bytes_); }
  void randomize(uint64_t seed) const {
    std::mt19937_64 random(seed);
    for (std::byte& byte : span()) byte = static_cast<std::byte>(random());
  }

 private:
  struct Free {
    bool owned;
    void operator()(std::byte* p) const {
      if (owned) ::operator delete[](p, std::align_val_t(kAlignment));
    }
  };
  size_t bytes_;
  std::unique_ptr<std::byte[], Free> data_;
};

inline bool same_bytes(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

class RecordingLog final : public LogSink {
 public:
  void log(LogLevel level, std::string_view message) override {
    const std::lock_guard lock(mutex_);
    if (level == LogLevel::warning) warnings_.emplace_back(message);
  }
  std::vector<std::string> warnings() const {
    const std::lock_guard lock(mutex_);
    return warnings_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> warnings_;
};

class RecordingTraffic final : public TrafficSink {
 public:
  void record(const TrafficRecord& record) noexcept override {
    const std::lock_guard lock(mutex_);
    records_.push_back(record);
  }
  std::vector<TrafficRecord> records() const {
    const std::lock_guard lock(mutex_);
    return records_;
  }
  uint64_t bytes(Activity activity) const {
    uint64_t sum = 0;
    for (const TrafficRecord& record : records()) {
      if (record.activity == activity) sum += record.bytes;
    }
    return sum;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<TrafficRecord> records_;
};

inline constexpr std::chrono::milliseconds kNoLimit{-1};

inline IoRequest request_for(Op op, const FileSpace& file, uint64_t offset,
                             std::span<std::byte> bytes) {
  IoRequest request;
  request.op = op;
  request.file = &file;
  request.offset = offset;
  request.data = bytes.data();
  request.bytes = bytes.size();
  return request;
}

// Reaps until nothing is under way; in the order in which requests came back.
inline std::vector<IoRequest*> reap_all(IoEngine& engine) {
  std::vector<IoRequest*> done;
  std::array<IoRequest*, 4> batch;
  while (engine.in_flight() > 0) {
    const size_t count = engine.reap(batch, kNoLimit);
    done.insert(done.end(), batch.begin(), batch.begin() + static_cast<std::ptrdiff_t>(count));
  }
  return done;
}

inline void run(IoEngine& engine, IoRequest request) {
  engine.submit(request);
  reap_all(engine);
  request.throw_if_failed();
}

inline std::string io_error_of(const IoRequest& request) {
  try {
    request.throw_if_failed();
  } catch (const IoError& error) {
    return error.what();
  }
  return "";
}

// Null where the kernel or a container forbids io_uring.
inline std::unique_ptr<IoBackend> make_plain_backend(BackendChoice choice, uint32_t depth) {
  NullLogSink log;
  try {
    return make_backend(choice, depth, 3, log);
  } catch (const IoError& error) {
    if (error.error_number != EPERM && error.error_number != ENOSYS) throw;
    return nullptr;
  }
}

}  // namespace strata::io
