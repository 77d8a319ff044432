// Casts between the element types.
#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/optimizer_cast.cc"
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/ops/cpu/elements-inl.h"
#include "strata/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::HWY_NAMESPACE {

template <class Src, class Dst>
void cast_elements(const void* from, void* to, int64_t begin, int64_t end) {
  using SrcStored = typename Src::Stored;
  using DstStored = typename Dst::Stored;
  const auto* src = static_cast<const SrcStored*>(from) + begin;
  auto* dst = static_cast<DstStored*>(to) + begin;
  const int64_t numel = end - begin;
  if constexpr (std::is_same_v<Src, Dst>) {
    std::memcpy(dst, src, static_cast<size_t>(numel) * sizeof(SrcStored));
  } else {
    const F32 d;
    int64_t i = 0;
    for (; i + kLanes <= numel; i += kLanes) store<Dst>(d, load<Src>(d, src + i), dst + i);
    // The last elements, fewer than a vector, through the same code on padded copies.
    const size_t rest = static_cast<size_t>(numel - i);
    HWY_ALIGN SrcStored padded_src[kLanes] = {};
    HWY_ALIGN DstStored padded_dst[kLanes];
    std::memcpy(padded_src, src + i, rest * sizeof(SrcStored));
    store<Dst>(d, load<Src>(d, padded_src), padded_dst);
    std::memcpy(dst + i, padded_dst, rest * sizeof(DstStored));
  }
}

void cast_range(const void* from, DType src_dtype, void* to, DType dst_dtype, int64_t begin,
                int64_t end) {
  with_element(src_dtype, [&](auto src) {
    with_element(dst_dtype, [&](auto dst) {
      cast_elements<decltype(src), decltype(dst)>(from, to, begin, end);
    });
  });
}

}  // namespace strata::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/ops/cpu/optimizer_range.h"
#include "kernels/ops/optimizer_ops.h"
#include "strata/error.h"

namespace strata::ops {
namespace {
HWY_EXPORT(cast_range);
}  // namespace

void cast(void* dst, DType dst_dtype, const void* src, DType src_dtype, int64_t numel) {
  require(is_float(src_dtype) && is_float(dst_dtype) && numel >= 0,
          "cast: both sides are fp32, bf16 or fp16, and numel is not negative");
  const auto kernel = in_force(HWY_DISPATCH_TABLE(cast_range));
  for_grains(numel, [&](int64_t begin, int64_t end) {
    kernel(src, src_dtype, dst, dst_dtype, begin, end);
  });
}

}  // namespace strata::ops
#endif  // HWY_ONCE
