// Sequential I/O as `strata bench io` measures it: by Strata's engine, by a bare liburing loop, by
// fio.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "io/block_file.h"

namespace strata::tools {

enum class IoMix : uint8_t { read, write, mixed };  // mixed: as much of both
constexpr std::string_view name(IoMix mix) {
  return mix == IoMix::read ? "read" : mix == IoMix::write ? "write" : "mixed";
}

// A file walked from end to end, again and again, `depth` blocks at a time.
struct IoLoad {
  IoMix mix = IoMix::read;
  uint64_t block_bytes = 0;  // divides the file's size by an even number
  uint32_t depth = 1;
};

struct IoResult {
  uint64_t bytes = 0;
  double seconds = 0;
};

// Offsets in a file, block after block. Writes of a mixed load begin in the middle.
class IoWalk {
 public:
  IoWalk(IoMix mix, uint64_t file_bytes, uint64_t block_bytes)
      : mix_(mix),
        file_bytes_(file_bytes),
        block_bytes_(block_bytes),
        write_at_(mix == IoMix::mixed ? file_bytes / 2 : 0) {}

  struct Step {
    bool write = false;
    uint64_t offset = 0;
  };
  Step next() {
    const bool write = mix_ == IoMix::write || (mix_ == IoMix::mixed && count_++ % 2 == 1);
    uint64_t& at = write ? write_at_ : read_at_;
    const Step step = {write, at};
    at = (at + block_bytes_) % file_bytes_;
    return step;
  }

 private:
  const IoMix mix_;
  const uint64_t file_bytes_;
  const uint64_t block_bytes_;
  uint64_t read_at_ = 0;
  uint64_t write_at_;
  uint64_t count_ = 0;
};

// The least that a program can do: one thread, one io_uring, registered memory and file.
class LiburingLoop {
 public:
  // `memory` holds a block for each of `depth`, and outlives the loop. Throws IoError.
  LiburingLoop(const io::BlockFile& file, uint32_t depth, std::span<std::byte> memory);
  ~LiburingLoop();

  IoResult run(const IoLoad& load, double seconds);

 private:
  struct Ring;
  const io::BlockFile& file_;
  const std::span<std::byte> memory_;
  const std::unique_ptr<Ring> ring_;
};

// The program fio, where it is installed.
class Fio {
 public:
  // Nothing where it is not installed.
  static std::optional<Fio> find();

  const std::string& version() const { return version_; }
  // With buffers and files registered where it can. Throws Error when fio fails.
  IoResult run(const io::BlockFile& file, const IoLoad& load, double seconds);

 private:
  explicit Fio(std::string version) : version_(std::move(version)) {}

  std::string version_;
  bool registers_ = true;  // until it turns out that it may not
};

}  // namespace strata::tools
