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

using F32 = hn::ScalableTag<float>;
using F32Vec = hn::Vec<F32>;
constexpr int64_t kLanes = hn::MaxLanes(F32());

// From and to float or, as bf16 cut short, uint16_t.
HWY_INLINE F32Vec widen(const float* from) { return hn::LoadU(F32(), from); }
HWY_INLINE F32Vec widen(const uint16_t* from) {
  const hn::RebindToUnsigned<F32> du;
  const auto bits = hn::LoadU(hn::Rebind<uint16_t, F32>(), from);
  return hn::BitCast(F32(), hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
}
template <class D>
HWY_INLINE void write(hn::Vec<D> x, D d, bool streaming, hn::TFromD<D>* to) {
  if constexpr (sizeof(hn::TFromD<D>) * hn::MaxLanes(d) >= 16) {
    if (streaming) return hn::Stream(x, d, to);
  }
  hn::StoreU(x, d, to);
}
HWY_INLINE void narrow(F32Vec x, bool streaming, float* to) { write(x, F32(), streaming, to); }
HWY_INLINE void narrow(F32Vec x, bool streaming, uint16_t* to) {
  const hn::Rebind<uint16_t, F32> d;
  const auto bits = hn::BitCast(hn::RebindToUnsigned<F32>(), x);
  write(hn::TruncateTo(d, hn::ShiftRight<16>(bits)), d, streaming, to);
}

template <int64_t kBlock, class T>
HWY_INLINE void prefetch_block(const T* from) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < kBlock; i += kLine) hwy::Prefetch(from + i);
}

template <int64_t kBlock, size_t kStates, class Grad, class Param>
void stream_blocks(const StreamSpans& spans, const StreamLoop& loop, int64_t begin, int64_t end) {
  const F32 d;
  // Not constants to the compiler, which would leave the arithmetic out.
  volatile float volatile_one = 1;
  volatile float volatile_zero = 0;
  const F32Vec one = hn::Set(d, volatile_one);
  const F32Vec zero = hn::Set(d, volatile_zero);
  const std::array<float*, 3> state = spans.state;
  const auto* grad = static_cast<const Grad*>(spans.grad);
  auto* param = static_cast<Param*>(spans.param);
  const int64_t ahead = loop.prefetch_numel;
  const bool streaming = loop.streaming_param;
  for (int64_t i = begin; i < end; i += kBlock) {
    if (ahead > 0) {
      for (size_t k = 0; k < kStates; ++k) prefetch_block<kBlock>(state[k] + i + ahead);
      prefetch_block<kBlock>(grad + i + ahead);
    }
    for (int64_t j = i; j < i + kBlock; j += kLanes) {
      const F32Vec master = hn::MulAdd(widen(grad + j), zero, hn::LoadU(d, state[0] + j));
      hn::StoreU(master, d, state[0] + j);
      for (size_t k = 1; k < kStates; ++k) {
        hn::StoreU(hn::Mul(hn::LoadU(d, state[k] + j), one), d, state[k] + j);
      }
      narrow(master, streaming, param + j);
    }
  }
  if (streaming) hwy::FlushStream();
}

template <size_t kStates, class Grad, class Param>
void stream_elements(const StreamSpans& spans, const StreamLoop& loop, int64_t begin, int64_t end) {
  switch (loop.block_numel) {
    case 16:
      return stream_blocks<16, kStates, Grad, Param>(spans, loop, begin, end);
    case 32:
      return stream_blocks<32, kStates, Grad, Param>(spans, loop, begin, end);
    case 64:
      return stream_blocks<64, kStates, Grad, Param>(spans, loop, begin, end);
    case 256:
      return stream_blocks<256, kStates, Grad, Param>(spans, loop, begin, end);
  }
}

template <size_t kStates, class Grad>
void stream_states(const StreamSpans& spans, const StreamLoop& loop, int64_t begin, int64_t end) {
  spans.param_bytes == sizeof(float)
      ? stream_elements<kStates, Grad, float>(spans, loop, begin, end)
      : stream_elements<kStates, Grad, uint16_t>(spans, loop, begin, end);
}

template <size_t kStates>
void stream_grad(const StreamSpans& spans, const StreamLoop& loop, int64_t begin, int64_t end) {
  spans.grad_bytes == sizeof(float) ? stream_states<kStates, float>(spans, loop, begin, end)
                                    : stream_states<kStates, uint16_t>(spans, loop, begin, end);
}

void stream_slice(const StreamSpans& spans, const StreamLoop& loop, int64_t begin, int64_t end) {
  spans.states == 3 ? stream_grad<3>(spans, loop, begin, end)
                    : stream_grad<2>(spans, loop, begin, end);
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

constexpr StreamLoop kLoops[] = {{16, 0, true},   {64, 0, true},   {256, 0, true}, {32, 96, true},
                                 {32, 256, true}, {64, 512, true}, {16, 0, false}, {32, 96, false}};

}  // namespace

std::string to_string(const StreamLoop& loop) {
  return fmt::format("blocks of {}, {}, {} stores", loop.block_numel,
                     loop.prefetch_numel > 0 ? fmt::format("prefetch {} ahead", loop.prefetch_numel)
                                             : std::string("no prefetch"),
                     loop.streaming_param ? "streaming" : "plain");
}

std::span<const StreamLoop> stream_loops() { return kLoops; }

void stream_pass(const StreamSpans& spans, const StreamLoop& loop) {
  parallel_for(spans.numel, kGrainNumel, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(stream_slice)(spans, loop, begin, end);
  });
}

}  // namespace strata::tools
#endif  // HWY_ONCE
