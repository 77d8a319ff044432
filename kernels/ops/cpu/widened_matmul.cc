#include "kernels/ops/cpu/widened_matmul.h"

#include "kernels/device/thread_team.h"
#include "kernels/ops/cpu/narrow_rows.h"
#include "strata/grain.h"

namespace strata::ops::cpu {
namespace {

constexpr int64_t kElementsTogether = 4096;

// fn(begin, end) over [0, numel): on the team, or here where the product is for this thread alone.
template <typename Fn>
void in_parts(bool alone, int64_t numel, const Fn& fn) {
  if (alone) {
    fn(0, numel);
  } else {
    parallel_for(numel, kElementsTogether, fn);
  }
}

void widen(const MatmulSpec& spec, const void* from, int64_t numel, float* to) {
  const auto* narrow = static_cast<const uint16_t*>(from);
  in_parts(spec.alone, numel, [=, dtype = spec.dtype](int64_t begin, int64_t end) {
    widen_row(dtype, narrow + begin, end - begin, to + begin);
  });
}

void narrow(const MatmulSpec& spec, const float* from, int64_t numel, void* to) {
  auto* narrow = static_cast<uint16_t*>(to);
  in_parts(spec.alone, numel, [=, dtype = spec.dtype](int64_t begin, int64_t end) {
    round_row(dtype, from + begin, end - begin, narrow + begin);
  });
}

}  // namespace

// Where the widened operands lie in the scratch; with a null base it only measures.
struct WidenedMatmul::Pieces {
  float* a;
  float* b;
  float* bias;
  float* out;  // for a 16-bit output
  std::byte* scratch;
  size_t bytes = 0;

  Pieces(const MatmulSpec& spec, void* base, size_t fp32_scratch_bytes) {
    const auto take = [&](size_t wanted) {
      std::byte* piece = static_cast<std::byte*>(base) + bytes;
      constexpr int64_t kAlignmentBytes = 64;
      bytes += static_cast<size_t>(round_up(static_cast<int64_t>(wanted), kAlignmentBytes));
      return base == nullptr ? nullptr : piece;
    };
    const auto take_floats = [&](int64_t numel) {
      return reinterpret_cast<float*>(take(static_cast<size_t>(numel) * sizeof(float)));
    };
    a = take_floats(spec.m * spec.k);
    b = take_floats(spec.k * spec.n);
    bias = take_floats(spec.add_bias ? spec.n : 0);
    out = take_floats(spec.out_dtype != DType::fp32 ? spec.m * spec.n : 0);
    scratch = take(fp32_scratch_bytes);
  }
};

// What is added to a 16-bit output lies in its widened copy beforehand.
MatmulSpec WidenedMatmul::fp32_spec(const MatmulSpec& spec) {
  MatmulSpec fp32 = spec;
  fp32.dtype = DType::fp32;
  fp32.out_dtype = DType::fp32;
  if (spec.out_dtype != DType::fp32) {
    fp32.accumulate = spec.accumulate || spec.add_residual;
    fp32.add_residual = false;
  }
  return fp32;
}

size_t WidenedMatmul::scratch_bytes(const MatmulSpec& spec, size_t fp32_scratch_bytes) {
  return Pieces(spec, nullptr, fp32_scratch_bytes).bytes;
}

WidenedMatmul::WidenedMatmul(const MatmulSpec& spec, std::unique_ptr<Matmul> fp32)
    : spec_(spec), fp32_(std::move(fp32)) {}

size_t WidenedMatmul::scratch_bytes() const { return scratch_bytes(spec_, fp32_->scratch_bytes()); }

void WidenedMatmul::run(const MatmulBuffers& buffers, int slot) {
  const Pieces pieces(spec_, buffers.scratch, fp32_->scratch_bytes());
  const int64_t out_numel = spec_.m * spec_.n;
  MatmulBuffers fp32 = buffers;
  fp32.scratch = pieces.scratch;
  fp32.a = pieces.a;
  fp32.b = pieces.b;
  widen(spec_, buffers.a, spec_.m * spec_.k, pieces.a);
  widen(spec_, buffers.b, spec_.k * spec_.n, pieces.b);
  if (spec_.add_bias) {
    widen(spec_, buffers.bias, spec_.n, pieces.bias);
    fp32.bias = pieces.bias;
  }
  if (spec_.out_dtype == DType::fp32) return fp32_->run(fp32, slot);

  const void* added = spec_.add_residual ? buffers.residual : buffers.out;
  if (spec_.add_residual || spec_.accumulate) widen(spec_, added, out_numel, pieces.out);
  fp32.out = pieces.out;
  fp32_->run(fp32, slot);
  narrow(spec_, pieces.out, out_numel, buffers.out);
}

}  // namespace strata::ops::cpu
