#include "kernels/ops/cpu/attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/device/thread_team.h"
#include "kernels/ops/cpu/attention_rows.h"
#include "kernels/ops/cpu/dropout.h"
#include "strata/grain.h"

namespace strata::ops::cpu {
namespace {

// Measured at T = 256, D = 64: with 128 the products are faster, but forward and backward together
// are 8 % slower for the part of the triangle that they waste.
constexpr int64_t kQueriesTogether = 64;
constexpr size_t kAlignmentBytes = 64;
static_assert(kQueriesTogether % kDropoutRows == 0 && kKeysTogether == kDropoutColumns);

// Cuts a slot's part of the workspace; with a null base it only measures.
class Pieces {
 public:
  explicit Pieces(void* base) : base_(static_cast<std::byte*>(base)) {}

  template <typename T>
  T* take(int64_t numel, size_t element_bytes) {
    std::byte* piece = base_ == nullptr ? nullptr : base_ + used_bytes_;
    const size_t bytes = static_cast<size_t>(numel) * element_bytes;
    used_bytes_ += (bytes + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
    return reinterpret_cast<T*>(piece);
  }
  float* take_floats(int64_t numel) { return take<float>(numel, sizeof(float)); }
  size_t used_bytes() const { return used_bytes_; }

 private:
  std::byte* base_;
  size_t used_bytes_ = 0;
};

int64_t padded(int64_t sequence) { return round_up(sequence, kKeysTogether); }
int64_t widest_block(int64_t sequence) { return std::min(sequence, kQueriesTogether); }
// Words that say what dropout keeps of the widest block.
int64_t keep_words(int64_t sequence) {
  return round_up(widest_block(sequence), kDropoutRows) * padded(sequence) / kDropoutColumns;
}

// One head's rows inside a tensor (batch, sequence, parts * channels).
HeadRows head_rows(const AttentionShape& shape, const void* tensor, int64_t head_index,
                   int64_t parts, int64_t part) {
  const int64_t stride = parts * shape.channels();
  const int64_t first = head_index / shape.heads * shape.sequence * stride +
                        part * shape.channels() + head_index % shape.heads * shape.head_channels;
  auto* bytes = static_cast<std::byte*>(const_cast<void*>(tensor));
  return {.data = bytes + static_cast<size_t>(first) * size_bytes(shape.dtype),
          .stride = stride,
          .rows = shape.sequence,
          .channels = shape.head_channels,
          .dtype = shape.dtype};
}

HeadRows rows_of_block(HeadRows rows, int64_t begin, int64_t end) {
  auto* bytes = static_cast<std::byte*>(rows.data);
  rows.data = bytes + static_cast<size_t>(begin * rows.stride) * size_bytes(rows.dtype);
  rows.rows = end - begin;
  return rows;
}

// What dropout keeps of a head's probabilities for that block of queries; null without dropout.
const uint16_t* drawn(const DropoutStream& site, const AttentionShape& shape, int64_t head_index,
                      KeepBlock block, uint16_t* words) {
  if (!site.drops()) return nullptr;
  const auto batch = static_cast<uint64_t>(head_index / shape.heads);
  const auto head = static_cast<uint64_t>(head_index % shape.heads);
  block.dropout = site;
  block.dropout.stream += batch << 32 | head;
  keep_bits(block, words);
  return words;
}

float score_scale(const AttentionShape& shape) {
  return 1 / std::sqrt(static_cast<float>(shape.head_channels));
}

}  // namespace

struct Attention::ForwardBuffers {
  std::byte *q, *k, *v;  // (padded sequence, D)
  float* scores;         // (queries, keys)
  std::byte* weights;    // (queries, keys)
  float* out;            // (queries, D)
  float* inverse_sum;    // (queries)
  uint16_t* keep;        // keep_words
  std::byte* scratch;
  size_t row_bytes;  // of q, k, v
  size_t bytes;

  ForwardBuffers(void* base, const Head& head) {
    const int64_t keys = padded(head.shape.sequence);
    const int64_t queries = widest_block(head.shape.sequence);
    const size_t element = size_bytes(head.shape.dtype);
    row_bytes = static_cast<size_t>(head.shape.channels) * element;
    Pieces pieces(base);
    for (std::byte** rows : {&q, &k, &v}) *rows = pieces.take<std::byte>(keys, row_bytes);
    scores = pieces.take_floats(queries * keys);
    weights = pieces.take<std::byte>(queries * keys, element);
    out = pieces.take_floats(queries * head.shape.channels);
    inverse_sum = pieces.take_floats(queries);
    keep = pieces.take<uint16_t>(keep_words(head.shape.sequence), sizeof(uint16_t));
    scratch = pieces.take<std::byte>(static_cast<int64_t>(head.scratch_bytes), 1);
    bytes = pieces.used_bytes();
  }
};

struct Attention::BackwardBuffers {
  std::byte *q, *k, *v, *out_grad;         // (padded sequence, D)
  float *k_grad, *v_grad;                  // (padded sequence, D)
  float *scores, *p_grad;                  // (queries, keys)
  std::byte *probabilities, *score_grads;  // (queries, keys)
  float* q_grad;                           // (queries, D)
  float* dot;                              // (queries)
  uint16_t* keep;                          // keep_words
  std::byte* scratch;
  size_t row_bytes;  // of q, k, v, out_grad
  size_t bytes;

  BackwardBuffers(void* base, const Head& head) {
    const int64_t keys = padded(head.shape.sequence);
    const int64_t queries = widest_block(head.shape.sequence);
    const size_t element = size_bytes(head.shape.dtype);
    row_bytes = static_cast<size_t>(head.shape.channels) * element;
    Pieces pieces(base);
    for (std::byte** rows : {&q, &k, &v, &out_grad}) {
      *rows = pieces.take<std::byte>(keys, row_bytes);
    }
    for (float** rows : {&k_grad, &v_grad}) {
      *rows = pieces.take_floats(keys * head.shape.channels);
    }
    for (float** block : {&scores, &p_grad}) *block = pieces.take_floats(queries * keys);
    for (std::byte** block : {&probabilities, &score_grads}) {
      *block = pieces.take<std::byte>(queries * keys, element);
    }
    q_grad = pieces.take_floats(queries * head.shape.channels);
    dot = pieces.take_floats(queries);
    keep = pieces.take<uint16_t>(keep_words(head.shape.sequence), sizeof(uint16_t));
    scratch = pieces.take<std::byte>(static_cast<int64_t>(head.scratch_bytes), 1);
    bytes = pieces.used_bytes();
  }
};

const Attention::Head& Attention::prepared(const AttentionShape& shape) {
  const HeadShape key{shape.sequence, shape.head_channels, shape.dtype};
  const auto found = heads_.find(key);
  if (found != heads_.end()) return found->second;
  Head head{.shape = key, .blocks = {}};
  const auto product = [&](MatmulSpec spec) {
    spec.dtype = key.dtype;
    spec.out_dtype = DType::fp32;
    spec.alone = true;
    Matmul& matmul = cache_.get(spec);
    head.scratch_bytes = std::max(head.scratch_bytes, matmul.scratch_bytes());
    return &matmul;
  };
  for (int64_t begin = 0; begin < key.sequence; begin += kQueriesTogether) {
    Block block{.begin = begin, .end = std::min(begin + kQueriesTogether, key.sequence)};
    block.keys = padded(block.end);
    const int64_t queries = block.queries();
    const int64_t channels = key.channels;
    MatmulSpec grad{.m = block.keys, .k = queries, .n = channels, .transpose_a = true};
    block.scores = product({.m = queries, .k = channels, .n = block.keys, .transpose_b = true});
    block.mix = product({.m = queries, .k = block.keys, .n = channels});
    block.grad = product(grad);
    grad.accumulate = true;
    block.grad_added = product(grad);
    head.blocks.push_back(block);
  }
  return heads_.emplace(key, std::move(head)).first->second;
}

size_t Attention::workspace_bytes(const AttentionShape& shape) {
  const Head& head = prepared(shape);
  const size_t slot_bytes =
      std::max(ForwardBuffers(nullptr, head).bytes, BackwardBuffers(nullptr, head).bytes);
  return slot_bytes * static_cast<size_t>(slots_);
}

// Calls body(head index, slot) for all heads of the batch; slots run at the same time.
template <typename Body>
void Attention::for_heads(const AttentionShape& shape, const Body& body) const {
  const int64_t heads = shape.batch * shape.heads;
  parallel_for(slots_, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      for (int64_t head = heads * slot / slots_; head < heads * (slot + 1) / slots_; ++head) {
        body(head, static_cast<int>(slot));
      }
    }
  });
}

void Attention::forward(const AttentionForwardArgs& args) {
  const Head& head = prepared(args.shape);
  for_heads(args.shape, [&](int64_t index, int slot) { forward_head(args, head, index, slot); });
}

void Attention::forward_head(const AttentionForwardArgs& args, const Head& head, int64_t index,
                             int slot) {
  const AttentionShape& shape = args.shape;
  const size_t slot_bytes = ForwardBuffers(nullptr, head).bytes;
  const ForwardBuffers buffers(
      static_cast<std::byte*>(args.workspace) + slot_bytes * static_cast<size_t>(slot), head);
  const int64_t rows = padded(shape.sequence);
  pack_rows(head_rows(shape, args.qkv, index, 3, 0), rows, buffers.q);
  pack_rows(head_rows(shape, args.qkv, index, 3, 1), rows, buffers.k);
  pack_rows(head_rows(shape, args.qkv, index, 3, 2), rows, buffers.v);
  const HeadRows out = head_rows(shape, args.out, index, 1, 0);
  float* log_sum = args.saved + index * shape.sequence;

  for (const Block& block : head.blocks) {
    block.scores->run({.a = buffers.q + static_cast<size_t>(block.begin) * buffers.row_bytes,
                       .b = buffers.k,
                       .out = buffers.scores,
                       .scratch = buffers.scratch},
                      slot);
    softmax_weights({.scores = buffers.scores,
                     .rows = block.queries(),
                     .keys = block.keys,
                     .first_visible = block.begin,
                     .scale = score_scale(shape),
                     .keep = drawn(args.dropout, shape, index, block.keep(), buffers.keep),
                     .keep_scale = args.dropout.scale,
                     .dtype = shape.dtype},
                    buffers.weights, buffers.inverse_sum, log_sum + block.begin);
    block.mix->run(
        {.a = buffers.weights, .b = buffers.v, .out = buffers.out, .scratch = buffers.scratch},
        slot);
    unpack_rows(buffers.out, buffers.inverse_sum, rows_of_block(out, block.begin, block.end));
  }
}

void Attention::backward(const AttentionBackwardArgs& args) {
  const Head& head = prepared(args.shape);
  for_heads(args.shape, [&](int64_t index, int slot) { backward_head(args, head, index, slot); });
}

void Attention::backward_head(const AttentionBackwardArgs& args, const Head& head, int64_t index,
                              int slot) {
  const AttentionShape& shape = args.shape;
  const size_t slot_bytes = BackwardBuffers(nullptr, head).bytes;
  const BackwardBuffers buffers(
      static_cast<std::byte*>(args.workspace) + slot_bytes * static_cast<size_t>(slot), head);
  const int64_t rows = padded(shape.sequence);
  const HeadRows out = head_rows(shape, args.out, index, 1, 0);
  const HeadRows out_grad = head_rows(shape, args.out_grad, index, 1, 0);
  pack_rows(head_rows(shape, args.qkv, index, 3, 0), rows, buffers.q);
  pack_rows(head_rows(shape, args.qkv, index, 3, 1), rows, buffers.k);
  pack_rows(head_rows(shape, args.qkv, index, 3, 2), rows, buffers.v);
  pack_rows(out_grad, rows, buffers.out_grad);
  const HeadRows q_grad = head_rows(shape, args.qkv_grad, index, 3, 0);
  const float* log_sum = args.saved + index * shape.sequence;

  const auto run = [&](Matmul* product, const void* a, const void* b, float* result) {
    product->run({.a = a, .b = b, .out = result, .scratch = buffers.scratch}, slot);
  };
  // From the last block, which sees all keys and so overwrites every row of k_grad and v_grad.
  for (auto block = head.blocks.rbegin(); block != head.blocks.rend(); ++block) {
    const size_t offset = static_cast<size_t>(block->begin) * buffers.row_bytes;
    run(block->scores, buffers.q + offset, buffers.k, buffers.scores);
    run(block->scores, buffers.out_grad + offset, buffers.v, buffers.p_grad);
    // sum_j p_j p_grad_j = out . out_grad, with dropout's factors in the p_j of the product with v
    dot_rows(rows_of_block(out, block->begin, block->end),
             rows_of_block(out_grad, block->begin, block->end), buffers.dot);
    softmax_gradients({.scores = buffers.scores,
                       .rows = block->queries(),
                       .keys = block->keys,
                       .first_visible = block->begin,
                       .scale = score_scale(shape),
                       .keep = drawn(args.dropout, shape, index, block->keep(), buffers.keep),
                       .keep_scale = args.dropout.scale,
                       .dtype = shape.dtype},
                      {.p_grad = buffers.p_grad,
                       .log_sum = log_sum + block->begin,
                       .dot = buffers.dot,
                       .probabilities = buffers.probabilities,
                       .score_grads = buffers.score_grads});
    run(block->mix, buffers.score_grads, buffers.k, buffers.q_grad);
    unpack_rows(buffers.q_grad, nullptr, rows_of_block(q_grad, block->begin, block->end));
    const bool last = block == head.blocks.rbegin();
    Matmul* grad = last ? block->grad : block->grad_added;
    run(grad, buffers.probabilities, buffers.out_grad + offset, buffers.v_grad);
    run(grad, buffers.score_grads, buffers.q + offset, buffers.k_grad);
  }
  unpack_rows(buffers.k_grad, nullptr, head_rows(shape, args.qkv_grad, index, 3, 1));
  unpack_rows(buffers.v_grad, nullptr, head_rows(shape, args.qkv_grad, index, 3, 2));
}

}  // namespace strata::ops::cpu
