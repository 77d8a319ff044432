// The ceiling of an optimizer's update: the same bytes in place, with next to no arithmetic.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace strata::tools {

// What a pass reads and writes: fp32 states in place, a gradient that is read and a parameter that
// is written. Each starts on a cache line; numel is a multiple of the grain.
struct StreamSpans {
  std::array<float*, 3> state = {};
  size_t states = 0;  // 2 or 3
  const void* grad = nullptr;
  size_t grad_bytes = 0;  // an element: 2 or 4
  void* param = nullptr;
  size_t param_bytes = 0;  // likewise
  int64_t numel = 0;
};

// One way to write the loop.
struct StreamLoop {
  int64_t block_numel = 16;     // elements of every span before the next: 16, 32, 64 or 256
  int64_t prefetch_numel = 0;   // how far ahead each block asks for its spans; 0: not at all
  bool streaming_param = true;  // the parameter bypasses the cache
};

std::string to_string(const StreamLoop& loop);

// The loops worth trying; which is best depends on the machine.
std::span<const StreamLoop> stream_loops();

// One pass on the calling thread's team, on the best instruction set. Leaves the states' values as
// they are where they and the gradients are finite.
void stream_pass(const StreamSpans& spans, const StreamLoop& loop);

}  // namespace strata::tools
