// State to and from fp32, outside of the update.
#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/optimizer_codecs.cc"
#include <cstdint>
#include <cstring>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/ops/cpu/codecs-inl.h"
#include "kernels/ops/optimizer_ops.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::HWY_NAMESPACE {

template <class Moment>
void decode_blocks(const CodecSpans& spans, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; at += kCodecBlockNumel) {
    // A block is made to be stored to as well; here it is only loaded.
    const Moment moment(const_cast<std::byte*>(spans.stored), at / kCodecBlockNumel);
    for (int64_t i = 0; i < kCodecBlockNumel; i += kPairNumel) {
      store_pair(moment.load(i), spans.values + at + i);
    }
  }
}

void decode_range(const CodecSpans& spans, int64_t begin, int64_t end) {
  const bool is_exp_avg = spans.kind == StateKind::exp_avg;
  if (spans.codec == Codec::split16) {
    const auto* const rest = reinterpret_cast<const uint16_t*>(spans.stored);
    const auto* const param = static_cast<const uint16_t*>(spans.param);
    for (int64_t i = begin; i < end; i += kPairNumel) {
      store_pair(Split16::decode(param + i, rest + i), spans.values + i);
    }
  } else if (spans.codec == Codec::bf16) {
    decode_blocks<Bf16Moment<StateKind::exp_avg>>(spans, begin, end);
  } else if (is_exp_avg) {
    decode_blocks<Int8Moment<StateKind::exp_avg>>(spans, begin, end);
  } else {
    decode_blocks<Int8Moment<StateKind::exp_avg_sq>>(spans, begin, end);
  }
}

template <class Moment>
void encode_blocks(const float* values, uint32_t key, std::byte* stored, int64_t begin,
                   int64_t end) {
  for (int64_t at = begin; at < end; at += kCodecBlockNumel) {
    Moment moment(stored, at / kCodecBlockNumel);
    const Noise first(key, static_cast<uint32_t>(at % kGrainNumel));
    Noise noise = first;
    for (int64_t i = 0; i < kCodecBlockNumel; i += kPairNumel) {
      moment.store(load_pair(values + at + i), noise.next(), i);
    }
    moment.finish(first);
  }
}

void encode_range(StateKind kind, Codec codec, const float* values, uint32_t key, std::byte* stored,
                  int64_t begin, int64_t end) {
  const bool is_exp_avg = kind == StateKind::exp_avg;
  if (codec == Codec::bf16) {
    is_exp_avg ? encode_blocks<Bf16Moment<StateKind::exp_avg>>(values, key, stored, begin, end)
               : encode_blocks<Bf16Moment<StateKind::exp_avg_sq>>(values, key, stored, begin, end);
  } else {
    is_exp_avg ? encode_blocks<Int8Moment<StateKind::exp_avg>>(values, key, stored, begin, end)
               : encode_blocks<Int8Moment<StateKind::exp_avg_sq>>(values, key, stored, begin, end);
  }
}

void split_range(const float* master, uint16_t* rest, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kPairNumel) {
    Split16::encode_rest(load_pair(master + i), rest + i);
  }
}

}  // namespace strata::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/ops/cpu/optimizer_range.h"
#include "strata/error.h"

namespace strata::ops {
namespace {

HWY_EXPORT(decode_range);
HWY_EXPORT(encode_range);
HWY_EXPORT(split_range);

void check(const CodecSpans& spans) {
  const bool is_master = spans.kind == StateKind::master;
  const bool is_moment = spans.kind == StateKind::exp_avg || spans.kind == StateKind::exp_avg_sq;
  const bool fits = spans.codec == Codec::fp32 || (is_master && spans.codec == Codec::split16) ||
                    (is_moment && (spans.codec == Codec::bf16 || spans.codec == Codec::int8));
  require((is_master || is_moment) && fits && spans.numel % kGrainNumel == 0,
          "a codec of optimizer state: fp32 or split16 for the master, fp32, bf16 or int8 for "
          "moments, in whole grains");
}

}  // namespace

void decode_state(const CodecSpans& spans) {
  check(spans);
  if (spans.codec == Codec::fp32) {
    return cast(spans.values, DType::fp32, spans.stored, DType::fp32, spans.numel);
  }
  const auto kernel = in_force(HWY_DISPATCH_TABLE(decode_range));
  for_grains(spans.numel, [&](int64_t begin, int64_t end) { kernel(spans, begin, end); });
}

void encode_master(Codec codec, const float* master, int64_t numel, std::byte* stored) {
  require((codec == Codec::fp32 || codec == Codec::split16) && numel % kGrainNumel == 0,
          "encode_master: the master is fp32 or split16, in whole grains");
  if (codec == Codec::fp32) return cast(stored, DType::fp32, master, DType::fp32, numel);
  const auto kernel = in_force(HWY_DISPATCH_TABLE(split_range));
  for_grains(numel, [&](int64_t begin, int64_t end) {
    kernel(master, reinterpret_cast<uint16_t*>(stored), begin, end);
  });
}

void encode_moments(StateKind kind, Codec codec, const float* values, int64_t numel, uint32_t key,
                    std::byte* stored) {
  check({.kind = kind, .codec = codec, .numel = numel});
  require(kind != StateKind::master, "encode_moments: a moment is wanted");
  if (codec == Codec::fp32) return cast(stored, DType::fp32, values, DType::fp32, numel);
  const auto kernel = in_force(HWY_DISPATCH_TABLE(encode_range));
  for_grains(numel, [&](int64_t begin, int64_t end) {
    kernel(kind, codec, values, key, stored, begin, end);
  });
}

void clear_blocks(Codec codec, int64_t begin, int64_t end, std::byte* stored) {
  require(begin % kCodecBlockNumel == 0 && end % kCodecBlockNumel == 0,
          "clear_blocks: encoded state is cleared in whole blocks");
  for (int64_t at = begin; at < end; at += kCodecBlockNumel) {
    const int64_t block = at / kCodecBlockNumel;
    if (codec == Codec::int8) {
      constexpr float kNoScale = 0;
      std::memset(stored + int8_codes_at(block), 0, kCodecBlockNumel);
      std::memcpy(stored + int8_scale_at(block), &kNoScale, sizeof(kNoScale));
    } else {
      const auto bytes = static_cast<size_t>(stored_bytes(codec, kCodecBlockNumel));
      std::memset(stored + static_cast<size_t>(block) * bytes, 0, bytes);
    }
  }
}

}  // namespace strata::ops
#endif  // HWY_ONCE
