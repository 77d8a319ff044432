#include "kernels/ops/cpu/dropout.h"

#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/dropout.cc"
#include <algorithm>
#include <iterator>

#include "hwy/foreach_target.h"
#include "kernels/ops/cpu/dropout-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::cpu::HWY_NAMESPACE {

template <class Element>
void drop_tile(const DropoutArgs& args, int64_t begin, int64_t end) {
  using Stored = typename Element::Stored;
  uint16_t words[kDropoutRows];
  if (args.dropout.drops()) {
    keep_tile(args.dropout, static_cast<uint64_t>(begin / kDropoutRows), words, 1);
  } else {
    std::fill(std::begin(words), std::end(words), uint16_t{0xffff});
  }
  const KeptRow kept(words, args.dropout.scale);
  const Stored* x = static_cast<const Stored*>(args.x) + begin;
  Stored* out = static_cast<Stored*>(args.out) + begin;
  if (args.residual == nullptr) {
    for_vectors(end - begin, [&](int64_t i, auto part) {
      store<Element>(kept.of(load<Element>(x + i, part), i), out + i, part);
    });
    return;
  }
  const Stored* residual = static_cast<const Stored*>(args.residual) + begin;
  for_vectors(end - begin, [&](int64_t i, auto part) {
    const auto branch = kept.of(load<Element>(x + i, part), i);
    store<Element>(hn::Add(load<Element>(residual + i, part), branch), out + i, part);
  });
}

void drop_range(const DropoutArgs& args, int64_t begin, int64_t end) {
  with_element(args.dtype, [&](auto element) {
    for (int64_t tile = begin; tile < end; tile += kDropoutTile) {
      drop_tile<decltype(element)>(args, tile, std::min(tile + kDropoutTile, end));
    }
  });
}

void keep_range(const KeepBlock& block, uint16_t* words) {
  const int64_t stride = block.keys / kDropoutColumns;
  for (int64_t query = 0; query < block.queries; query += kDropoutRows) {
    const int64_t first = block.first_query + query;
    const int64_t seen = std::min(first + kDropoutRows, block.keys);
    for (int64_t key = 0; key < seen; key += kDropoutColumns) {
      const auto counter =
          static_cast<uint64_t>(first / kDropoutRows) << 32 | static_cast<uint64_t>(key);
      keep_tile(block.dropout, counter, words + query * stride + key / kDropoutColumns, stride);
    }
  }
}

}  // namespace strata::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/device/thread_team.h"

namespace strata::ops::cpu {
namespace {
HWY_EXPORT(drop_range);
HWY_EXPORT(keep_range);

// Whole tiles, so that none is drawn twice.
constexpr int64_t kElementsTogether = 8 * kDropoutTile;
}  // namespace

void dropout(const DropoutArgs& args) {
  const auto kernel = in_force(HWY_DISPATCH_TABLE(drop_range));
  parallel_for(args.numel, kElementsTogether,
               [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void keep_bits(const KeepBlock& block, uint16_t* words) {
  in_force(HWY_DISPATCH_TABLE(keep_range))(block, words);
}

}  // namespace strata::ops::cpu
#endif  // HWY_ONCE
