// How a model's wide layers are cut into tiles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "strata/layer.h"

namespace strata::models {

struct TileRange {
  int64_t begin = 0;
  int64_t count = 0;
};

// A tile's part of `total`, of `tiles` nearly equal ones.
inline TileRange tile_range(int64_t total, int64_t tile, int64_t tiles) {
  const int64_t begin = total * tile / tiles;
  return {begin, total * (tile + 1) / tiles - begin};
}

inline std::string tile_name(const std::string& whole, int64_t tile) {
  return whole + ".tile" + std::to_string(tile);
}

// A tile's range along one dimension of a parameter. `shape` is the whole's, as dimensions of which
// one is cut.
inline Parameter tile_slice(Parameter whole, const Shape& shape, size_t dim, const TileRange& range,
                            int64_t tile) {
  whole.slice = {.of = whole.name, .shape = shape, .dim = dim, .begin = range.begin};
  whole.name = tile_name(whole.name, tile);
  whole.shape = shape;
  whole.shape.dims[dim] = range.count;
  return whole;
}

}  // namespace strata::models
