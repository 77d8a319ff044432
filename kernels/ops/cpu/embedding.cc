#include "kernels/ops/cpu/embedding.h"

#include <algorithm>

#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/embedding.cc"
#include "hwy/foreach_target.h"
#include "kernels/ops/cpu/layer_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::cpu::HWY_NAMESPACE {

// What a row is the sum of, at most: what it holds, its token's row and its position's.
template <class Stored>
struct Terms {
  const Stored* of[3] = {};
  int count = 0;

  void add(const Stored* term) { of[count++] = term; }
};

template <class Element>
void sum_terms(const Terms<typename Element::Stored>& terms, int64_t channels,
               typename Element::Stored* out) {
  const size_t bytes = static_cast<size_t>(channels) * sizeof(*out);
  if (terms.count == 0) {
    std::memset(out, 0, bytes);
  } else if (terms.count == 1) {
    if (terms.of[0] != out) std::memcpy(out, terms.of[0], bytes);
  } else {
    for_vectors(channels, [&](int64_t i, auto part) {
      auto sum =
          hn::Add(load<Element>(terms.of[0] + i, part), load<Element>(terms.of[1] + i, part));
      if (terms.count == 3) sum = hn::Add(sum, load<Element>(terms.of[2] + i, part));
      store<Element>(sum, out + i, part);
    });
  }
}

void embed_rows(const EmbeddingForwardArgs& args, int64_t begin, int64_t end) {
  const EmbeddingShape& shape = args.shape;
  with_element(shape.dtype, [&](auto element) {
    using Element = decltype(element);
    using Stored = typename Element::Stored;
    const auto* tokens = static_cast<const Stored*>(args.token_table);
    const auto* positions = static_cast<const Stored*>(args.position_table);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t token = args.tokens[row];
      Stored* out = static_cast<Stored*>(args.out) + row * shape.channels;
      Terms<Stored> terms;
      if (args.accumulate) terms.add(out);
      if (shape.has_row(token)) terms.add(tokens + (token - shape.first_token) * shape.channels);
      if (positions != nullptr) terms.add(positions + row % shape.sequence * shape.channels);
      sum_terms<Element>(terms, shape.channels, out);
    }
  });
}

// Index of the first `value` in [begin, end) of `values`, or `end`.
int64_t find(const int32_t* values, int64_t begin, int64_t end, int32_t value) {
  const hn::ScalableTag<int32_t> d;
  const auto wanted = hn::Set(d, value);
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    const auto found = hn::FindFirstTrue(d, hn::Eq(hn::LoadU(d, values + i), wanted));
    if (found >= 0) return i + found;
  }
  while (i < end && values[i] != value) ++i;
  return i;
}

constexpr int64_t kSumChannels = 256;  // fp32 sums of that many channels stay in L1

// The gradient of channels [begin, end) of the row of token `id`, which is first seen at `first`.
template <class Element>
void sum_token(const EmbeddingBackwardArgs& args, int64_t first, int64_t begin, int64_t end) {
  using Stored = typename Element::Stored;
  const int64_t channels = args.shape.channels;
  const int32_t id = args.tokens[first];
  Stored* target = static_cast<Stored*>(args.token_table.data) +
                   (id - args.shape.first_token) * channels + begin;
  HWY_ALIGN float sums[kSumChannels] = {};
  for (int64_t row = first; row < args.shape.rows();
       row = find(args.tokens, row + 1, args.shape.rows(), id)) {
    const auto* out_grad = static_cast<const Stored*>(args.out_grad) + row * channels + begin;
    for_vectors(end - begin, [&](int64_t i, auto part) {
      store<Fp32>(hn::Add(load<Fp32>(sums + i, part), load<Element>(out_grad + i, part)), sums + i,
                  part);
    });
  }
  for_vectors(end - begin, [&](int64_t i, auto part) {
    auto sum = load<Fp32>(sums + i, part);
    if (args.token_table.accumulate) sum = hn::Add(load<Element>(target + i, part), sum);
    store<Element>(sum, target + i, part);
  });
}

// Channels [begin, end) of every row of the token table. Threads share channels, not rows: a few
// tokens are most of a text. Looking for equal tokens costs N^2 / 2 comparisons a thread, 16 at a
// time, and needs no memory.
void sum_tokens(const EmbeddingBackwardArgs& args, int64_t begin, int64_t end) {
  with_element(args.shape.dtype, [&](auto element) {
    using Element = decltype(element);
    auto* table = static_cast<typename Element::Stored*>(args.token_table.data);
    if (!args.token_table.accumulate) {
      const size_t bytes = static_cast<size_t>(end - begin) * sizeof(*table);
      for (int64_t row = 0; row < args.shape.table_rows; ++row) {
        std::memset(table + row * args.shape.channels + begin, 0, bytes);
      }
    }
    for (int64_t row = 0; row < args.shape.rows(); ++row) {
      if (!args.shape.has_row(args.tokens[row])) continue;
      if (find(args.tokens, 0, row, args.tokens[row]) < row) continue;
      for (int64_t at = begin; at < end; at += kSumChannels) {
        sum_token<Element>(args, row, at, std::min(at + kSumChannels, end));
      }
    }
  });
}

// Rows [begin, end) of the position table: the batch's rows in order.
void sum_positions(const EmbeddingBackwardArgs& args, int64_t begin, int64_t end) {
  const EmbeddingShape& shape = args.shape;
  with_element(shape.dtype, [&](auto element) {
    using Element = decltype(element);
    using Stored = typename Element::Stored;
    const auto* out_grad = static_cast<const Stored*>(args.out_grad);
    for (int64_t position = begin; position < end; ++position) {
      const int64_t batch = position < shape.sequence ? shape.batch : 0;
      Stored* target = static_cast<Stored*>(args.position_table.data) + position * shape.channels;
      for_vectors(shape.channels, [&](int64_t i, auto part) {
        auto sum = hn::Zero(F32());
        for (int64_t b = 0; b < batch; ++b) {
          const int64_t row = b * shape.sequence + position;
          sum = hn::Add(sum, load<Element>(out_grad + row * shape.channels + i, part));
        }
        if (args.position_table.accumulate) sum = hn::Add(load<Element>(target + i, part), sum);
        store<Element>(sum, target + i, part);
      });
    }
  });
}

}  // namespace strata::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <string>

#include "kernels/device/thread_team.h"
#include "strata/error.h"

namespace strata::ops::cpu {
namespace {
HWY_EXPORT(embed_rows);
HWY_EXPORT(sum_tokens);
HWY_EXPORT(sum_positions);

constexpr int64_t kChannelsTogether = 32;  // a cache line of bf16

void check_tokens(const EmbeddingShape& shape, const int32_t* tokens) {
  for (int64_t row = 0; row < shape.rows(); ++row) {
    if (tokens[row] >= 0 && tokens[row] < shape.vocab) continue;
    throw Error("embedding: token " + std::to_string(tokens[row]) + " in row " +
                std::to_string(row) + " is outside a vocabulary of " + std::to_string(shape.vocab) +
                ".");
  }
}
}  // namespace

void embedding_forward(const EmbeddingForwardArgs& args) {
  check_tokens(args.shape, args.tokens);
  const auto kernel = &HWY_DYNAMIC_DISPATCH(embed_rows);
  parallel_for(args.shape.rows(), 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void embedding_backward(const EmbeddingBackwardArgs& args) {
  if (args.token_table.data != nullptr) {
    check_tokens(args.shape, args.tokens);
    const auto kernel = &HWY_DYNAMIC_DISPATCH(sum_tokens);
    parallel_for(args.shape.channels, kChannelsTogether,
                 [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  }
  if (args.position_table.data != nullptr) {
    const auto kernel = &HWY_DYNAMIC_DISPATCH(sum_positions);
    parallel_for(args.shape.positions, 1,
                 [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  }
}

}  // namespace strata::ops::cpu
#endif  // HWY_ONCE
