// Runs of elements that a thread reads and writes at once, and sums over a warp and a block. Device
// code: only nvcc reads it.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "kernels/ops/cuda/element.h"

namespace strata::ops::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kWholeWarp = 0xffff'ffffu;

// The widest run: 16 bytes.
template <typename Element>
inline constexpr int kWide = 16 / static_cast<int>(sizeof(typename Element::Stored));

// Whether rows of `columns` elements are whole runs, in tensors that begin on one. Null is none.
template <typename Element>
bool runs_fit(int64_t columns, std::initializer_list<const void*> tensors) {
  if (columns % kWide<Element> != 0) return false;
  for (const void* tensor : tensors) {
    if (reinterpret_cast<uintptr_t>(tensor) % 16 != 0) return false;
  }
  return true;
}

// Calls body(Element(), Width) with Width::value elements in a run: the widest that fits, or one.
template <int kNumel>
struct Width {
  static constexpr int value = kNumel;
};
template <typename Body>
void with_runs(DType dtype, int64_t columns, std::initializer_list<const void*> tensors,
               const Body& body) {
  with_element(dtype, [&](auto element) {
    using Element = decltype(element);
    if (runs_fit<Element>(columns, tensors)) return body(element, Width<kWide<Element>>());
    body(element, Width<1>());
  });
}

template <typename Stored, int kNumel>
struct alignas(sizeof(Stored) * kNumel) Run {
  Stored at[kNumel];
};

template <typename Element, int kNumel>
__device__ __forceinline__ void load_run(const typename Element::Stored* from,
                                         float (&to)[kNumel]) {
  using Stored = typename Element::Stored;
  const auto run = *reinterpret_cast<const Run<Stored, kNumel>*>(from);
#pragma unroll
  for (int i = 0; i < kNumel; ++i) to[i] = Element::widen(run.at[i]);
}

template <typename Element, int kNumel>
__device__ __forceinline__ void store_run(const float (&from)[kNumel],
                                          typename Element::Stored* to) {
  Run<typename Element::Stored, kNumel> run;
#pragma unroll
  for (int i = 0; i < kNumel; ++i) run.at[i] = Element::narrow(from[i]);
  *reinterpret_cast<Run<typename Element::Stored, kNumel>*>(to) = run;
}

// The same sum, in the same order, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kWholeWarp, x, offset);
  }
  return x;
}

}  // namespace strata::ops::cuda
