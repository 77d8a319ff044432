// Random bits of dropout as vectors (the definition is in kernels/ops/dropout.h), and masks made of
// them. Little-endian. Included once for each target.
#if defined(STRATA_DROPOUT_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef STRATA_DROPOUT_INL_H
#undef STRATA_DROPOUT_INL_H
#else
#define STRATA_DROPOUT_INL_H
#endif

#include <cstdint>
#include <type_traits>

#include "kernels/ops/cpu/dropout.h"
#include "kernels/ops/cpu/layer_math-inl.h"
#include "kernels/ops/dropout.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::cpu::HWY_NAMESPACE {

static_assert(kDropoutColumns % kLanes == 0);

// Multiplies what is kept of a row by the scale, and the rest by zero: what is not a number stays
// so. The row's bits are as keep_tile() leaves them.
class KeptRow {
 public:
  HWY_INLINE KeptRow(const uint16_t* words, float scale)
      : words_(words), scale_(hn::Set(F32(), scale)) {}

  // `x`: the vector that starts at element i, a multiple of a vector's length.
  HWY_INLINE Vector of(Vector x, int64_t i) const {
    const uint64_t bits = uint64_t{words_[i / kDropoutColumns]} >> (i % kDropoutColumns);
    const auto kept = hn::LoadMaskBits(F32(), reinterpret_cast<const uint8_t*>(&bits));
    return hn::Mul(x, hn::IfThenElseZero(kept, scale_));
  }

 private:
  const uint16_t* words_;
  Vector scale_;
};

// keep_tile(dropout, counter, words, stride): of a tile's row r, bit c of words[r * stride] says
// whether column c is kept. Column 0 has the random bits of call `counter`, a multiple of
// kDropoutColumns.
#if HWY_TARGET == HWY_SCALAR

HWY_INLINE void keep_tile(const DropoutStream& dropout, uint64_t counter, uint16_t* words,
                          int64_t stride) {
  for (int64_t row = 0; row < kDropoutRows; ++row) words[row * stride] = 0;
  for (int64_t column = 0; column < kDropoutColumns; ++column) {
    const auto bits = Philox{dropout.key}(counter + static_cast<uint64_t>(column), dropout.stream);
    for (int64_t row = 0; row < kDropoutRows; ++row) {
      const uint32_t word = bits[static_cast<size_t>(row / 2)];
      const uint32_t piece = row % 2 == 0 ? word & 0xffff : word >> 16;
      const bool kept = piece >= dropout.threshold;
      words[row * stride] = static_cast<uint16_t>(words[row * stride] | kept << column);
    }
  }
}

#else

using U32 = hn::RebindToUnsigned<F32>;
using I32 = hn::RebindToSigned<F32>;
using U64 = hn::Repartition<uint64_t, U32>;

// Product of the lower halves of 64-bit lanes with a constant.
HWY_INLINE hn::Vec<U64> multiply(hn::Vec<U64> x, uint64_t by) {
  return hn::MulEven(hn::BitCast(U32(), x), hn::BitCast(U32(), hn::Set(U64(), by)));
}

// The words of calls from `first` on, a call in each lane: body(row, words) for the words that
// rows `row` and `row` + 1 of a tile take their bits from. A word is the lower half of a 64-bit
// lane, whose upper half is rubbish meanwhile, so that no product need be taken apart; two lots of
// calls go beside each other and meet at the end. (Plain variables: GCC keeps structures of vectors
// in memory.)
template <class Body>
HWY_INLINE void draw(const DropoutStream& dropout, uint64_t first, const Body& body) {
  const U64 d;
  auto even0 = hn::Add(hn::Set(d, first & 0xffff'ffff), hn::ShiftLeft<1>(hn::Iota(d, 0)));
  auto even1 = hn::Set(d, first >> 32);
  auto even2 = hn::Set(d, dropout.stream);
  auto even3 = hn::Set(d, dropout.stream >> 32);
  auto odd0 = hn::Add(even0, hn::Set(d, 1));
  auto odd1 = even1, odd2 = even2, odd3 = even3;
  auto key0 = hn::Set(d, dropout.key);
  auto key1 = hn::Set(d, dropout.key >> 32);
  for (int round = 0; round < 10; ++round) {
    const auto even_a = multiply(even0, 0xD2511F53), odd_a = multiply(odd0, 0xD2511F53);
    const auto even_b = multiply(even2, 0xCD9E8D57), odd_b = multiply(odd2, 0xCD9E8D57);
    even0 = hn::Xor3(hn::ShiftRight<32>(even_b), even1, key0);
    odd0 = hn::Xor3(hn::ShiftRight<32>(odd_b), odd1, key0);
    even2 = hn::Xor3(hn::ShiftRight<32>(even_a), even3, key1);
    odd2 = hn::Xor3(hn::ShiftRight<32>(odd_a), odd3, key1);
    even1 = even_b;
    odd1 = odd_b;
    even3 = even_a;
    odd3 = odd_a;
    key0 = hn::Add(key0, hn::Set(d, 0x9E3779B9));
    key1 = hn::Add(key1, hn::Set(d, 0xBB67AE85));
  }
  const auto together = [](hn::Vec<U64> even, hn::Vec<U64> odd) {
    return hn::OddEven(hn::BitCast(U32(), hn::ShiftLeft<32>(odd)), hn::BitCast(U32(), even));
  };
  body(0, together(even0, odd0));
  body(2, together(even1, odd1));
  body(4, together(even2, odd2));
  body(6, together(even3, odd3));
}

// Bits of the lanes where `piece`, below 2^16, is above the largest that is dropped.
HWY_INLINE uint32_t kept_bits(hn::Vec<U32> piece, hn::Vec<I32> dropped) {
  const I32 d;
  // As wide as what is stored: a load does not wait for more bytes than were written.
  std::conditional_t<(kLanes > 8), uint16_t, uint8_t> bits = 0;
  hn::StoreMaskBits(d, hn::Gt(hn::BitCast(d, piece), dropped), reinterpret_cast<uint8_t*>(&bits));
  return bits & ((1u << kLanes) - 1);
}

HWY_INLINE void keep_tile(const DropoutStream& dropout, uint64_t counter, uint16_t* words,
                          int64_t stride) {
  const auto dropped = hn::Set(I32(), static_cast<int32_t>(dropout.threshold) - 1);
  for (int64_t column = 0; column < kDropoutColumns; column += kLanes) {
    const auto put = [&](int64_t row, uint32_t bits) {
      uint16_t& word = words[row * stride];
      word = static_cast<uint16_t>((column == 0 ? 0 : word) | bits << column);
    };
    draw(dropout, counter + static_cast<uint64_t>(column), [&](int64_t row, hn::Vec<U32> word) {
      put(row, kept_bits(hn::And(word, hn::Set(U32(), 0xffff)), dropped));
      put(row + 1, kept_bits(hn::ShiftRight<16>(word), dropped));
    });
  }
}

#endif

}  // namespace strata::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
