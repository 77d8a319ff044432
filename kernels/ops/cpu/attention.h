// Causal multi-head attention on packed q, k, v, on the calling thread's team.
//
// A thread takes whole heads. For each it packs the head's rows into its part of the workspace,
// then goes over blocks of query rows with just the keys that the block's last row sees, so that
// little of the upper triangle is computed. Scores never leave the cache. Forward keeps one fp32 a
// row and head, the logarithm of the softmax's denominator, from which backward computes the
// probabilities again: that costs a fifth more arithmetic and saves T times the memory.
//
// Dropout is of the probabilities, after softmax and before the product with v. The bits that say
// which to keep are drawn for a block of queries at a time.
//
// The same bits come out for any number of threads.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "kernels/ops/cpu/dropout.h"
#include "kernels/ops/cpu/matmul.h"
#include "kernels/ops/dropout.h"
#include "kernels/ops/layer_shapes.h"
#include "strata/dtype.h"

namespace strata::ops::cpu {

struct AttentionForwardArgs {
  AttentionShape shape;
  const void* qkv = nullptr;  // (batch, sequence, 3 * channels)
  void* out = nullptr;        // (batch, sequence, channels)
  float* saved = nullptr;     // attention_saved_bytes
  void* workspace = nullptr;  // Attention::workspace_bytes, aligned to 64 bytes
  DropoutStream dropout = {};
};

struct AttentionBackwardArgs {
  AttentionShape shape;
  const void* qkv = nullptr;
  const void* out = nullptr;
  const void* out_grad = nullptr;
  const float* saved = nullptr;
  void* qkv_grad = nullptr;
  void* workspace = nullptr;
  DropoutStream dropout = {};
};

// Holds the prepared products of each sequence length and head size. Not thread-safe; `cache` must
// outlive it. `slots` is the number of threads that the workspace is cut for.
class Attention {
 public:
  Attention(MatmulCache& cache, int slots) : cache_(cache), slots_(slots) {}

  // Enough for forward and backward, whatever the batch and the number of heads.
  size_t workspace_bytes(const AttentionShape& shape);
  void forward(const AttentionForwardArgs& args);
  void backward(const AttentionBackwardArgs& args);

 private:
  struct HeadShape {
    int64_t sequence;
    int64_t channels;
    DType dtype;
    auto operator<=>(const HeadShape&) const = default;
  };

  // Queries [begin, end) against the first `keys` keys, a multiple of kKeysTogether.
  struct Block {
    int64_t begin = 0;
    int64_t end = 0;
    int64_t keys = 0;
    Matmul* scores = nullptr;      // (queries, keys) = q . k^T, and out_grad . v^T
    Matmul* mix = nullptr;         // (queries, D) = p . v, and ds . k
    Matmul* grad = nullptr;        // (keys, D) = p^T . out_grad, and ds^T . q
    Matmul* grad_added = nullptr;  // the same, added to what is there

    int64_t queries() const { return end - begin; }
    KeepBlock keep() const { return {.first_query = begin, .queries = queries(), .keys = keys}; }
  };

  struct Head {
    HeadShape shape;
    std::vector<Block> blocks;
    size_t scratch_bytes = 0;
  };

  struct ForwardBuffers;
  struct BackwardBuffers;

  const Head& prepared(const AttentionShape& shape);
  void forward_head(const AttentionForwardArgs& args, const Head& head, int64_t index, int slot);
  void backward_head(const AttentionBackwardArgs& args, const Head& head, int64_t index, int slot);
  template <typename Body>
  void for_heads(const AttentionShape& shape, const Body& body) const;

  MatmulCache& cache_;
  const int slots_;
  std::map<HeadShape, Head> heads_;
};

}  // namespace strata::ops::cpu
