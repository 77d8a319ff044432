// Encoded optimizer state with values that decide something, for tests of its update.
#pragma once

#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "tests/kernels/ops/codec_reference.h"
#include "tests/kernels/ops/optimizer_state.h"

namespace strata::ops {

inline constexpr int64_t kNumel = 5 * kGrainNumel;
inline constexpr uint64_t kFirstIndex = uint64_t{1} << 33;  // beyond 32 bits

// State as it is kept.
struct EncodedState {
  EncodedState(Codec master_codec, Codec moment_codec)
      : codecs{master_codec, moment_codec, moment_codec} {
    for (size_t i = 0; i < stored.size(); ++i) {
      stored[i].resize(static_cast<size_t>(stored_bytes(codecs[i], kNumel)));
    }
  }

  // Takes a state's masters and parameters as they are, and its moments rounded as after `step`.
  void encode(const State& state, uint64_t step) {
    const auto* const master = reinterpret_cast<const float*>(state.master.at(0));
    encode_master(codecs[0], master, kNumel, stored[0].data());
    encode_moment(StateKind::exp_avg, state.exp_avg, step);
    encode_moment(StateKind::exp_avg_sq, state.exp_avg_sq, step);
  }

  void encode_moment(StateKind kind, const Elements& values, uint64_t step) {
    std::byte* const to = data(kind);
    if (codecs[1] == Codec::fp32) {
      std::memcpy(to, values.at(0), values.size());
      return;
    }
    for (int64_t block = 0; block < kNumel / kCodecBlockNumel; ++block) {
      const int64_t at = block * kCodecBlockNumel;
      reference::encode_block(kind, codecs[1], reinterpret_cast<const float*>(values.at(at)),
                              kFirstIndex + static_cast<uint64_t>(at), step, block, to);
    }
  }

  void decode(StateKind kind, const Elements& param, Elements& values) {
    const Codec codec = kind == StateKind::master ? codecs[0] : codecs[1];
    decode_state(
        {kind, codec, data(kind), param.at(0), reinterpret_cast<float*>(values.at(0)), kNumel});
  }

  std::byte* data(StateKind kind) {
    return stored[static_cast<size_t>(kind) - static_cast<size_t>(StateKind::master)].data();
  }

  EncodedSpans spans(Elements& grad, Elements& param, OptimizerKind kind) {
    const OptimizerMoments moments = moments_of(kind);
    return {.master = {stored[0].data(), codecs[0]},
            .exp_avg = {stored[1].data(), moments.exp_avg ? codecs[1] : Codec::none},
            .exp_avg_sq = {stored[2].data(), moments.exp_avg_sq ? codecs[2] : Codec::none},
            .grad = grad.at(0),
            .param = param.at(0),
            .grad_dtype = grad.dtype(),
            .param_dtype = param.dtype(),
            .begin = 0,
            .end = kNumel,
            .first_index = kFirstIndex};
  }

  std::array<Codec, 3> codecs;
  std::array<std::vector<std::byte>, 3> stored;
};

// Ordinary values, and hard ones in every seventh block: one infinity makes an int8 block NaN.
inline State start_state(DType grad_dtype, DType param_dtype) {
  State state(grad_dtype, param_dtype, kNumel, 11);
  std::mt19937_64 rng(12);
  std::normal_distribution<float> normal(0, 1);
  for (int64_t i = 0; i < kNumel; ++i) {
    if (i / kCodecBlockNumel % 7 == 3) continue;
    const float spread = std::ldexp(1.0f, -static_cast<int>(rng() % 24));
    state.master.set(i, normal(rng));
    state.exp_avg.set(i, normal(rng) * spread);
    state.exp_avg_sq.set(i, std::abs(normal(rng)) * spread * spread);
    state.grad.set_value(i, normal(rng) * spread);
  }
  // A block of zeros, and one below what int8 holds.
  for (int64_t i = 0; i < kCodecBlockNumel; ++i) {
    state.exp_avg.set(i, 0.0f);
    state.exp_avg_sq.set(i, 0.0f);
    state.exp_avg.set(i + kCodecBlockNumel, 0x1p-110f);
    state.exp_avg_sq.set(i + kCodecBlockNumel, 0x1p-110f);
    state.grad.set_value(i, 0.0f);
    state.grad.set_value(i + kCodecBlockNumel, 0.0f);
  }
  return state;
}

}  // namespace strata::ops
