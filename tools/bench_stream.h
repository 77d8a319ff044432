// The ceiling of an optimizer's update: the same bytes in place, with next to no arithmetic.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace strata::tools {

enum class StreamAccess : uint8_t { in_place, read, write };

// One array of a pass. Starts on a cache line.
struct StreamSpan {
  std::byte* data = nullptr;
  size_t element_bytes = 0;  // 1, 2 or 4
  StreamAccess access = StreamAccess::in_place;
};

// What a pass reads and writes; numel is a multiple of the grain.
struct StreamSpans {
  std::array<StreamSpan, 5> spans = {};
  size_t count = 0;
  int64_t numel = 0;

  void add(void* data, size_t element_bytes, StreamAccess access) {
    spans[count++] = {static_cast<std::byte*>(data), element_bytes, access};
  }
  std::span<const StreamSpan> all() const { return {spans.data(), count}; }
};

// One way to write the loop.
struct StreamLoop {
  int64_t block_numel = 64;    // elements of every span before the next; a multiple of 64
  int64_t prefetch_numel = 0;  // how far ahead each block asks for what it reads; 0: not at all
  bool streaming = true;       // what is only written bypasses the cache
};

std::string to_string(const StreamLoop& loop);

// The loops worth trying; which is best depends on the machine.
std::span<const StreamLoop> stream_loops();

// One pass on the calling thread's team, on the best instruction set. Leaves what is in place as it
// is, and zeros in what is written.
void stream_pass(const StreamSpans& spans, const StreamLoop& loop);

}  // namespace strata::tools
