// Where a tile's parameter lies in the whole one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "strata/layer.h"

namespace strata::models {

// Calls visit(where it begins in the whole parameter, elements of `values`) for each run of
// neighbours there; `values` are the parameter's elements from `first` on.
template <typename Visit>
void for_runs_in_whole(const Parameter& parameter, int64_t first, std::span<float> values,
                       const Visit& visit) {
  if (!parameter.slice) return visit(first, values);
  const ParameterSlice& slice = *parameter.slice;
  int64_t inner = 1;
  for (size_t dim = slice.dim + 1; dim < slice.shape.rank; ++dim) inner *= slice.shape[dim];
  // Neighbours here are neighbours in the whole as far as a run of these goes.
  const int64_t run = parameter.shape[slice.dim] * inner;
  const int64_t end = first + static_cast<int64_t>(values.size());
  for (int64_t at = first; at < end;) {
    const int64_t count = std::min(run - at % run, end - at);
    const int64_t whole = (at / run * slice.shape[slice.dim] + slice.begin) * inner + at % run;
    visit(whole, values.subspan(static_cast<size_t>(at - first), static_cast<size_t>(count)));
    at += count;
  }
}

}  // namespace strata::models
