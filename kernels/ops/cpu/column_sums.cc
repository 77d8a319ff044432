#include "kernels/ops/cpu/column_sums.h"

#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/column_sums.cc"
#include "hwy/foreach_target.h"
#include "kernels/ops/cpu/layer_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::cpu::HWY_NAMESPACE {

// Adds up columns [begin, end) of all chunks.
void add_chunks(const ChunkSum& args, int64_t begin, int64_t end) {
  with_element(args.dtype, [&](auto element) {
    using Element = decltype(element);
    auto* target = static_cast<typename Element::Stored*>(args.target.data) + begin;
    for_vectors(end - begin, [&](int64_t i, auto part) {
      auto sum = hn::Zero(F32());
      for (int64_t chunk = 0; chunk < args.chunks; ++chunk) {
        sum = hn::Add(sum, load<Fp32>(args.partials + chunk * args.stride + begin + i, part));
      }
      if (args.target.accumulate) sum = hn::Add(load<Element>(target + i, part), sum);
      store<Element>(sum, target + i, part);
    });
  });
}

template <class Element>
void add_rows(const typename Element::Stored* x, int64_t rows, int64_t columns, float* sums) {
  std::memset(sums, 0, static_cast<size_t>(columns) * sizeof(float));
  int64_t row = 0;
  // Four rows at a time: the sums' own loads and stores are what this loop waits for.
  for (; row + 4 <= rows; row += 4, x += 4 * columns) {
    for_vectors(columns, [&](int64_t i, auto part) {
      const auto low = hn::Add(load<Element>(x + i, part), load<Element>(x + columns + i, part));
      const auto high = hn::Add(load<Element>(x + 2 * columns + i, part),
                                load<Element>(x + 3 * columns + i, part));
      const auto sum = hn::Add(load<Fp32>(sums + i, part), hn::Add(low, high));
      store<Fp32>(sum, sums + i, part);
    });
  }
  for (; row < rows; ++row, x += columns) {
    for_vectors(columns, [&](int64_t i, auto part) {
      const auto sum = hn::Add(load<Fp32>(sums + i, part), load<Element>(x + i, part));
      store<Fp32>(sum, sums + i, part);
    });
  }
}

void add_rows_of_chunks(const ColumnSum& args, int64_t begin, int64_t end) {
  const RowChunks chunks(args.rows);
  with_element(args.dtype, [&](auto element) {
    using Element = decltype(element);
    const auto* x = static_cast<const typename Element::Stored*>(args.x);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunks.begin(chunk);
      add_rows<Element>(x + first * args.columns, chunks.begin(chunk + 1) - first, args.columns,
                        args.partials + chunk * args.columns);
    }
  });
}

}  // namespace strata::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/device/thread_team.h"

namespace strata::ops::cpu {
namespace {
HWY_EXPORT(add_chunks);
HWY_EXPORT(add_rows_of_chunks);
constexpr int64_t kColumnsTogether = 64;  // whole cache lines in every dtype
}  // namespace

void sum_chunks(const ChunkSum& args) {
  if (args.target.data == nullptr) return;
  const auto kernel = &HWY_DYNAMIC_DISPATCH(add_chunks);
  parallel_for(args.columns, kColumnsTogether,
               [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void sum_columns(const ColumnSum& args) {
  if (args.target.data == nullptr) return;
  const auto kernel = &HWY_DYNAMIC_DISPATCH(add_rows_of_chunks);
  const RowChunks chunks(args.rows);
  parallel_for(chunks.count, 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  sum_chunks({.partials = args.partials,
              .chunks = chunks.count,
              .stride = args.columns,
              .columns = args.columns,
              .dtype = args.dtype,
              .target = args.target});
}

}  // namespace strata::ops::cpu
#endif  // HWY_ONCE
