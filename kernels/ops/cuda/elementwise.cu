// GELU, addition and dropout. Each output element depends on the input elements of its index alone,
// so outputs may be inputs.
#include "kernels/ops/cuda/element_math.h"
#include "kernels/ops/cuda/launch-inl.cuh"
#include "kernels/ops/cuda/layer_kernels.cuh"
#include "kernels/ops/cuda/pack-inl.cuh"

namespace strata::ops::cuda {
namespace {

constexpr int kThreads = 256;

struct GeluOf {
  __device__ float operator()(float x, float) const { return gelu(x); }
};
struct GeluGradOf {
  __device__ float operator()(float x, float out_grad) const { return out_grad * gelu_slope(x); }
};
struct Sum {
  __device__ float operator()(float x, float y) const { return x + y; }
};

// out = function(x, y); y may be null, and is zero then.
template <typename Element>
struct Map {
  const typename Element::Stored *x, *y;
  typename Element::Stored* out;
  int64_t numel;
};

template <typename Element, int kRun, typename Function>
__global__ void __launch_bounds__(kThreads) map_elements(Map<Element> map, Function function) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kRun;
  if (i >= map.numel) return;
  float x[kRun], y[kRun] = {};
  load_run<Element>(map.x + i, x);
  if (map.y != nullptr) load_run<Element>(map.y + i, y);
#pragma unroll
  for (int j = 0; j < kRun; ++j) x[j] = function(x[j], y[j]);
  store_run<Element>(x, map.out + i);
}

template <typename Function>
void map(const TensorView& x, const TensorView& y, const TensorView& out, const Function& function,
         cudaStream_t stream) {
  const int64_t numel = x.numel();
  with_runs(x.dtype, numel, {x.data, y.data, out.data}, [&](auto element, auto run) {
    using Element = decltype(element);
    using Stored = typename Element::Stored;
    constexpr int kRun = decltype(run)::value;
    const Map<Element> args{x.template as<Stored>(), y.template as<Stored>(),
                            out.template as<Stored>(), numel};
    launch(&map_elements<Element, kRun, Function>,
           {.blocks = ceil_div(numel, kThreads * kRun), .threads = kThreads, .stream = stream},
           args, function);
  });
}

// A thread draws one call, whose elements lie 16 apart: 16 threads together touch whole sectors.
template <typename Element>
__global__ void __launch_bounds__(kThreads) drop_elements(Map<Element> map, DropoutStream dropout) {
  const int64_t call = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (dropout_line_index(call, 0) >= map.numel) return;
  const uint32_t keeps = dropout_keeps(dropout, static_cast<uint64_t>(call), dropout.stream);
#pragma unroll
  for (int j = 0; j < kDropoutCallElements; ++j) {
    const int64_t i = dropout_line_index(call, j);
    if (i >= map.numel) return;
    // Rounded before it is added, as on the host: not a fused operation.
    float value =
        __fmul_rn(Element::widen(map.x[i]), dropout_factor((keeps >> j & 1) != 0, dropout.scale));
    if (map.y != nullptr) value = Element::widen(map.y[i]) + value;
    map.out[i] = Element::narrow(value);
  }
}

}  // namespace

void gelu_forward(const LayerOps::Gelu& op, cudaStream_t stream) {
  map(op.x, {}, op.out, GeluOf(), stream);
}

void gelu_backward(const LayerOps::GeluBackward& op, cudaStream_t stream) {
  map(op.x, op.out_grad, op.x_grad, GeluGradOf(), stream);
}

void add(const TensorView& x, const TensorView& y, const TensorView& out, cudaStream_t stream) {
  if (y) return map(x, y, out, Sum(), stream);
  if (out.data == x.data) return;
  check_cuda(cudaMemcpyAsync(out.data, x.data, x.bytes(), cudaMemcpyDefault, stream), "copying");
}

void dropout(const LayerOps::Dropout& op, const DropoutStream& dropout, cudaStream_t stream) {
  if (!dropout.drops()) return add(op.x, op.residual, op.out, stream);
  with_element(op.x.dtype, [&](auto element) {
    using Element = decltype(element);
    using Stored = typename Element::Stored;
    const int64_t numel = op.x.numel();
    const Map<Element> args{op.x.template as<Stored>(), op.residual.template as<Stored>(),
                            op.out.template as<Stored>(), numel};
    // Whole tiles: the last one's calls all begin before its end or draw nothing.
    const int64_t calls = ceil_div(numel, 16 * kDropoutCallElements) * 16;
    launch(&drop_elements<Element>,
           {.blocks = ceil_div(calls, kThreads), .threads = kThreads, .stream = stream}, args,
           dropout);
  });
}

}  // namespace strata::ops::cuda
