#include "engine/comm/trading_communicator.h"

#include <algorithm>
#include <cstring>

#include "strata/error.h"
#include "strata/grain.h"

namespace strata::engine {

void TradingCommunicator::all_gather(std::byte* flat, uint64_t shard_bytes, const TrafficTag& tag) {
  enqueue({.call = {Verb::all_gather, tag.label, shard_bytes},
           .give = flat + rank() * shard_bytes,
           .take = flat,
           .take_stride = shard_bytes},
          tag);
}

void TradingCommunicator::check(const ReduceScatterSpans& spans) {
  require(spans.dtype != DType::int32, "reduce_scatter: gradients are fp32, bf16 or fp16");
  require(spans.shard_numel >= 0 && spans.shard_numel % kGrainNumel == 0,
          "reduce_scatter: a shard has whole grains");
}

void TradingCommunicator::reduce_scatter(const ReduceScatterSpans& spans, const TrafficTag& tag) {
  check(spans);
  const int64_t step = piece_numel(spans);
  for (int64_t begin = 0; begin < spans.shard_numel; begin += step) {
    const Piece piece = {begin, std::min(step, spans.shard_numel - begin)};
    const Trade trade = trade_of(piece, spans, tag.label);
    enqueue(trade, tag);
    enqueue_sum(piece, spans, trade);
  }
}

Trade TradingCommunicator::exchange_of(std::span<const std::byte> mine,
                                       std::span<std::byte> all) const {
  require(all.size() == mine.size() * size(), "exchange: `all` has room for every rank's `mine`");
  if (!mine.empty()) std::memcpy(all.data() + rank() * mine.size(), mine.data(), mine.size());
  return {.call = {Verb::exchange, "", mine.size()},
          .give = mine.data(),
          .take = all.data(),
          .take_stride = mine.size()};
}

// Elements of a shard that go in one turn.
int64_t TradingCommunicator::piece_numel(const ReduceScatterSpans& spans) const {
  if (size() == 1) return std::max(spans.shard_numel, kGrainNumel);
  const auto room = spans.scratch.size() / (size() - 1) / size_bytes(spans.dtype);
  const int64_t numel = static_cast<int64_t>(room) / kGrainNumel * kGrainNumel;
  require(numel > 0, "reduce_scatter: the scratch has no room for a grain of every peer");
  return std::min(numel, std::max(spans.shard_numel, kGrainNumel));
}

// What the others give of `piece` goes to the scratch side by side, in rank order.
Trade TradingCommunicator::trade_of(const Piece& piece, const ReduceScatterSpans& spans,
                                    const char* label) const {
  const uint64_t element_bytes = size_bytes(spans.dtype);
  const uint64_t bytes = piece.numel * element_bytes;
  return {.call = {Verb::reduce_scatter, label, bytes},
          .give = static_cast<const std::byte*>(spans.flat) + piece.begin * element_bytes,
          .give_stride = spans.shard_numel * element_bytes,
          .take = spans.scratch.data(),
          .take_stride = bytes,
          .without_place = rank()};
}

// Rank 0's addends first, whatever order they came in.
void TradingCommunicator::enqueue_sum(const Piece& piece, const ReduceScatterSpans& spans,
                                      const Trade& trade) {
  for (int from = 0; from < size(); ++from) {
    ops_.land_gradient(queue_,
                       {.dst = spans.out + piece.begin,
                        .dst_dtype = DType::fp32,
                        .src = from == rank() ? trade.given_to(from) : trade.taken_from(from),
                        .src_dtype = spans.dtype,
                        .numel = piece.numel,
                        .add = from > 0});
  }
}

}  // namespace strata::engine
