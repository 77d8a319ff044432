#include "tools/bench_stream.h"

// Vectors whose length is known only at run time would not divide the blocks.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tools/bench_stream.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace strata::tools::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using U32 = hn::ScalableTag<uint32_t>;
using U32Vec = hn::Vec<U32>;
constexpr int64_t kVectorBytes = hn::MaxLanes(U32()) * 4;
constexpr int64_t kLineBytes = 64;

// One block of one array, whole cache lines. What is read goes into `sum`; `zero` is no constant to
// the compiler, which would leave the arithmetic out.
HWY_INLINE U32Vec stream_block(const StreamSpan& span, std::byte* at, int64_t bytes, bool streaming,
                               U32Vec zero, U32Vec sum) {
  const U32 d;
  for (int64_t i = 0; i < bytes; i += kVectorBytes) {
    auto* const vector = reinterpret_cast<uint32_t*>(at + i);
    switch (span.access) {
      case StreamAccess::in_place:
        hn::StoreU(hn::Xor(hn::LoadU(d, vector), zero), d, vector);
        break;
      case StreamAccess::read:
        sum = hn::Xor(sum, hn::LoadU(d, vector));
        break;
      case StreamAccess::write:
        streaming ? hn::Stream(zero, d, vector) : hn::StoreU(zero, d, vector);
        break;
    }
  }
  return sum;
}

HWY_INLINE void prefetch(const std::byte* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kLineBytes) hwy::Prefetch(from + i);
}

void stream_slice(const StreamSpans& spans, const StreamLoop& loop, int64_t begin, int64_t end) {
  const U32 d;
  volatile uint32_t volatile_zero = 0;
  const U32Vec zero = hn::Set(d, volatile_zero);
  U32Vec sum = zero;
  for (int64_t i = begin; i < end; i += loop.block_numel) {
    for (const StreamSpan& span : spans.all()) {
      const auto element_bytes = static_cast<int64_t>(span.element_bytes);
      const int64_t bytes = loop.block_numel * element_bytes;
      std::byte* const at = span.data + i * element_bytes;
      if (loop.prefetch_numel > 0 && span.access != StreamAccess::write) {
        prefetch(at + loop.prefetch_numel * element_bytes, bytes);
      }
      sum = stream_block(span, at, bytes, loop.streaming, zero, sum);
    }
  }
  hwy::FlushStream();
  volatile uint32_t sink = hn::GetLane(sum);
  (void)sink;
}

}  // namespace strata::tools::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <fmt/format.h>

#include "kernels/device/thread_team.h"
#include "strata/grain.h"

namespace strata::tools {
namespace {

HWY_EXPORT(stream_slice);

constexpr StreamLoop kLoops[] = {{64, 0, true},   {128, 0, true},   {256, 0, true},
                                 {1024, 0, true}, {4096, 0, true},  {64, 128, true},
                                 {64, 512, true}, {256, 256, true}, {256, 1024, true},
                                 {64, 0, false},  {64, 128, false}, {1024, 0, false}};

}  // namespace

std::string to_string(const StreamLoop& loop) {
  return fmt::format("blocks of {}, {}, {} stores", loop.block_numel,
                     loop.prefetch_numel > 0 ? fmt::format("prefetch {} ahead", loop.prefetch_numel)
                                             : std::string("no prefetch"),
                     loop.streaming ? "streaming" : "plain");
}

std::span<const StreamLoop> stream_loops() { return kLoops; }

void stream_pass(const StreamSpans& spans, const StreamLoop& loop) {
  parallel_for(spans.numel, kGrainNumel, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(stream_slice)(spans, loop, begin, end);
  });
}

}  // namespace strata::tools
#endif  // HWY_ONCE
