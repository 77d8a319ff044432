#include "kernels/ops/cuda/column_sums-inl.cuh"
#include "kernels/ops/cuda/layer_kernels.cuh"

namespace strata::ops::cuda {
namespace {

template <typename Element>
struct PlainTerms {
  static constexpr int kSums = 1;

  __device__ void add(int64_t row, int64_t column, float (&sums)[kSums]) const {
    sums[0] += Element::widen(x[row * columns + column]);
  }

  const typename Element::Stored* x;
  int64_t columns;
};

}  // namespace

void sum_columns(const ColumnSum& sum, cudaStream_t stream) {
  if (!sum.target.view) return;
  with_element(sum.dtype, [&](auto element) {
    using Element = decltype(element);
    const PlainTerms<Element> terms{static_cast<const typename Element::Stored*>(sum.x),
                                    sum.shape.columns};
    sum_over_rows<Element>(terms, sum.shape, {sum.target}, static_cast<float*>(sum.partials),
                           stream);
  });
}

size_t column_sum_bytes(const RowShape& shape) {
  return RowChunks(shape.rows).partial_bytes(shape.columns, 1);
}

}  // namespace strata::ops::cuda
