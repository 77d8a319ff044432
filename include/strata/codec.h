// How the optimizer's state is kept between steps: codecs and the bytes they take. A pure table;
// the arithmetic that encodes and decodes is in kernels/ops.
//
//   fp32     as computed
//   split16  of master weights beside bf16 parameters: the parameter is the upper half, stored are
//            the lower 16 bits; exact
//   bf16     of moments, rounded stochastically
//   int8     of moments: 8-bit floats with a scale for each block, rounded stochastically
//   none     a kind that the optimizer does not keep
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "strata/grain.h"

namespace strata {

enum class Codec : uint8_t { none, fp32, split16, bf16, int8 };

constexpr std::string_view name(Codec codec) {
  constexpr std::array<std::string_view, 5> names = {"none", "fp32", "split16", "bf16", "int8"};
  return names[static_cast<size_t>(codec)];
}

// Elements that are encoded together. Whatever is updated with one setting is a multiple of it.
inline constexpr int64_t kCodecBlockNumel = 256;

// Bytes that `numel` elements take, whole grains. An int8 grain is its codes and then the scale of
// each of its blocks, in fp32.
constexpr int64_t stored_bytes(Codec codec, int64_t numel) {
  switch (codec) {
    case Codec::none:
      return 0;
    case Codec::fp32:
      return numel * 4;
    case Codec::split16:
    case Codec::bf16:
      return numel * 2;
    case Codec::int8:
      return numel + numel / kCodecBlockNumel * 4;
  }
  return 0;
}

// Where an int8 block's codes and scale lie, in bytes from the first block of a grain.
inline constexpr int64_t kBlocksAGrain = kGrainNumel / kCodecBlockNumel;
constexpr int64_t int8_codes_at(int64_t block) {
  return block / kBlocksAGrain * stored_bytes(Codec::int8, kGrainNumel) +
         block % kBlocksAGrain * kCodecBlockNumel;
}
constexpr int64_t int8_scale_at(int64_t block) {
  return block / kBlocksAGrain * stored_bytes(Codec::int8, kGrainNumel) + kGrainNumel +
         block % kBlocksAGrain * 4;
}

}  // namespace strata
