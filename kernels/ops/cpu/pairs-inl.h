// Pairs of vectors: neighbouring elements, apart by the parity of their places. 16-bit elements are
// halves of 32-bit words, so they come apart and go together again with a shift and a mask, where
// vectors of consecutive elements take a shuffle each way. Little-endian. Included once for each
// target.
#if defined(STRATA_PAIRS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef STRATA_PAIRS_INL_H
#undef STRATA_PAIRS_INL_H
#else
#define STRATA_PAIRS_INL_H
#endif

#include <cstdint>

#include "kernels/ops/cpu/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::HWY_NAMESPACE {

using U32 = hn::RebindToUnsigned<F32>;
using I32 = hn::RebindToSigned<F32>;
using U32Vec = hn::Vec<U32>;

struct F32Pair {
  F32Vec even;
  F32Vec odd;
};
struct U32Pair {
  U32Vec even;
  U32Vec odd;
};
constexpr int64_t kPairNumel = 2 * kLanes;

HWY_INLINE F32Pair load_pair(const float* from) {
  F32Pair x;
  hn::LoadInterleaved2(F32(), from, x.even, x.odd);
  return x;
}
HWY_INLINE void store_pair(F32Pair x, float* to) {
  hn::StoreInterleaved2(x.even, x.odd, F32(), to);
}

// Words of two elements of 8 or 16 bits, the even one in the lower half.
#if HWY_TARGET == HWY_SCALAR
template <typename T>
HWY_INLINE U32Vec load_words(const T* from) {
  return hn::Set(U32(), from[0] | uint32_t{from[1]} << 16);
}
template <typename T>
HWY_INLINE void store_words(U32Vec words, T* to) {
  const uint32_t word = hn::GetLane(words);
  to[0] = static_cast<T>(word);
  to[1] = static_cast<T>(word >> 16);
}
#else
using U16 = hn::Repartition<uint16_t, F32>;
using U8 = hn::Rebind<uint8_t, U16>;
HWY_INLINE U32Vec load_words(const uint16_t* from) {
  return hn::BitCast(U32(), hn::LoadU(U16(), from));
}
HWY_INLINE U32Vec load_words(const uint8_t* from) {
  return hn::BitCast(U32(), hn::PromoteTo(U16(), hn::LoadU(U8(), from)));
}
HWY_INLINE void store_words(U32Vec words, uint16_t* to) {
  hn::StoreU(hn::BitCast(U16(), words), U16(), to);
}
HWY_INLINE void store_words(U32Vec words, uint8_t* to) {
  hn::StoreU(hn::TruncateTo(U8(), hn::BitCast(U16(), words)), U8(), to);
}
#endif

HWY_INLINE U32Vec lower_mask() { return hn::Set(U32(), 0xffff); }
HWY_INLINE U32Vec upper_mask() { return hn::Set(U32(), 0xffff'0000); }

// The words' elements, in lower halves.
HWY_INLINE U32Pair lower_of_words(U32Vec words) {
  return {hn::And(words, lower_mask()), hn::ShiftRight<16>(words)};
}
// In upper halves, zeros below.
HWY_INLINE U32Pair upper_of_words(U32Vec words) {
  return {hn::ShiftLeft<16>(words), hn::And(words, upper_mask())};
}
// Words of the lower halves, and of the upper ones.
HWY_INLINE U32Vec words_of_lower(U32Pair x) {
  return hn::OrAnd(hn::ShiftLeft<16>(x.odd), x.even, lower_mask());
}
HWY_INLINE U32Vec words_of_upper(U32Pair x) {
  return hn::OrAnd(hn::ShiftRight<16>(x.even), x.odd, upper_mask());
}

HWY_INLINE U32Pair bits(F32Pair x) {
  return {hn::BitCast(U32(), x.even), hn::BitCast(U32(), x.odd)};
}
HWY_INLINE F32Pair values(U32Pair x) {
  return {hn::BitCast(F32(), x.even), hn::BitCast(F32(), x.odd)};
}

}  // namespace strata::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
