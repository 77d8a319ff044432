// Dropout of activations on the calling thread's team, and the bits that attention drops by on the
// calling thread alone. The definition is in kernels/ops/dropout.h. The same bits on every
// instruction set: these kernels run on the one in force (isa.h), which a test may choose.
#pragma once

#include <cstdint>

#include "kernels/ops/dropout.h"
#include "strata/dtype.h"

namespace strata::ops::cpu {

// A tile: the elements that share 16 calls of the generator.
inline constexpr int64_t kDropoutRows = 8;
inline constexpr int64_t kDropoutColumns = 16;
inline constexpr int64_t kDropoutTile = kDropoutRows * kDropoutColumns;

// out = residual + what is kept of x, scaled. Each output element depends on the input elements of
// its index alone, so `out` may be an input.
struct DropoutArgs {
  const void* x = nullptr;
  const void* residual = nullptr;  // null: none
  void* out = nullptr;
  int64_t numel = 0;
  DType dtype = DType::fp32;
  DropoutStream dropout = {};
};
void dropout(const DropoutArgs& args);

// Queries of one head against keys that they see: query q those up to q.
struct KeepBlock {
  DropoutStream dropout = {};  // the head's
  int64_t first_query = 0;     // a multiple of kDropoutRows
  int64_t queries = 0;
  int64_t keys = 0;  // a multiple of kDropoutColumns
};
// Bit k % 16 of words[(q - first_query) * keys / 16 + k / 16] says whether that probability is
// kept. There is room for the queries rounded up to kDropoutRows; words of unseen keys may be
// rubbish.
void keep_bits(const KeepBlock& block, uint16_t* words);

}  // namespace strata::ops::cpu
