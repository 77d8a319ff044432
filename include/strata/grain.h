// The grain: the unit in which training state is cut.
//
// Every shard, sub-group, placement and codec boundary is a multiple of it, so that a grain's
// bytes are always a whole number of 4 KiB blocks (8 KiB in 16 bit, 16 KiB in fp32), always belong
// to one rank, one sub-group and one tier, and sums taken per grain do not depend on the cut.
#pragma once

#include <cstdint>

namespace strata {

inline constexpr int64_t kGrainNumel = 4096;

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Number of grains that hold `numel` elements.
constexpr int64_t grains_for(int64_t numel) { return (numel + kGrainNumel - 1) / kGrainNumel; }

// A run of grains [begin, end) of a rank's trainable shard space.
struct GrainRange {
  int64_t begin = 0;
  int64_t end = 0;

  constexpr int64_t grains() const { return end - begin; }
  constexpr int64_t numel() const { return grains() * kGrainNumel; }
  constexpr bool empty() const { return end <= begin; }
  constexpr bool operator==(const GrainRange&) const = default;
};

constexpr GrainRange intersect(GrainRange a, GrainRange b) {
  const int64_t begin = a.begin > b.begin ? a.begin : b.begin;
  const int64_t end = a.end < b.end ? a.end : b.end;
  return {begin, end > begin ? end : begin};
}

}  // namespace strata
