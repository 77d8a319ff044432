#include "kernels/ops/cuda/element.h"
#include "kernels/ops/cuda/launch-inl.cuh"
#include "kernels/ops/cuda/matmul.cuh"

namespace strata::ops::cuda {
namespace {

constexpr int kTile = 16;

template <typename Element>
struct Plain {
  using Stored = typename Element::Stored;
  MatmulShape shape;
  const Stored *a, *b, *bias, *add;
  Stored* out;

  __device__ float a_at(int64_t i, int64_t l) const {
    if (i >= shape.m || l >= shape.k) return 0;
    return Element::widen(a[shape.transpose_a ? l * shape.m + i : i * shape.k + l]);
  }
  __device__ float b_at(int64_t l, int64_t j) const {
    if (l >= shape.k || j >= shape.n) return 0;
    return Element::widen(b[shape.transpose_b ? j * shape.k + l : l * shape.n + j]);
  }
};

// A thread sums one element, over tiles that the block brings to shared memory.
template <typename Element>
__global__ void __launch_bounds__(kTile* kTile) multiply_tiles(const Plain<Element> op) {
  __shared__ float a_tile[kTile][kTile + 1], b_tile[kTile][kTile + 1];
  const int64_t columns = ceil_div(op.shape.n, kTile);
  const int64_t row = blockIdx.x / columns * kTile + threadIdx.y;
  const int64_t column = blockIdx.x % columns * kTile + threadIdx.x;
  float sum = 0;
  for (int64_t first = 0; first < op.shape.k; first += kTile) {
    a_tile[threadIdx.y][threadIdx.x] = op.a_at(row, first + threadIdx.x);
    b_tile[threadIdx.y][threadIdx.x] = op.b_at(first + threadIdx.y, column);
    __syncthreads();
#pragma unroll
    for (int l = 0; l < kTile; ++l) {
      sum = fmaf(a_tile[threadIdx.y][l], b_tile[l][threadIdx.x], sum);
    }
    __syncthreads();
  }
  if (row >= op.shape.m || column >= op.shape.n) return;
  const int64_t at = row * op.shape.n + column;
  if (op.bias != nullptr) sum += Element::widen(op.bias[column]);
  if (op.add != nullptr) sum += Element::widen(op.add[at]);
  op.out[at] = Element::narrow(sum);
}

}  // namespace

void multiply_plain(const MatmulShape& shape, const MatmulArgs& args, cudaStream_t stream) {
  with_element(shape.dtype, [&](auto element) {
    using Element = decltype(element);
    using Stored = typename Element::Stored;
    const Plain<Element> op{.shape = shape,
                            .a = static_cast<const Stored*>(args.a),
                            .b = static_cast<const Stored*>(args.b),
                            .bias = static_cast<const Stored*>(args.bias),
                            .add = static_cast<const Stored*>(args.add),
                            .out = static_cast<Stored*>(args.out)};
    launch(&multiply_tiles<Element>,
           {.blocks = ceil_div(shape.m, kTile) * ceil_div(shape.n, kTile),
            .threads = dim3(kTile, kTile),
            .stream = stream},
           op);
  });
}

}  // namespace strata::ops::cuda
