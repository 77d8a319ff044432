// Where every parameter lies: units, flat buffers, shards and the trainable shard space.
//
// Pure arithmetic from a model and a rank of a world. A unit (layer) has two flat buffers,
// trainable and frozen; its parameters lie in them end to end, each at a multiple of
// kParamAlignNumel elements, those with weight decay first. A flat buffer is zero-padded to a
// multiple of world * grain, and each rank holds the training state of one contiguous 1/world of
// it: its shard. A rank's trainable shards, in unit order, make up its trainable shard space;
// optimizer state and gradients are arrays over it.
//
// ZeRO's stages (Rajbhandari et al. 2020, section 5) differ in what is cut: with stage 0 a rank's
// shard is the whole flat buffer; with stages 1 and 2 the shards are 1/world, and a unit's
// parameters lie whole on every rank; with stage 3 the parameters are cut as well, but for units of
// small parameters alone. Padding, and the part of a gradient whose norm a rank counts, are the
// same in all of them, and so are the bits.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/zero/parameter_setting.h"
#include "strata/codec.h"
#include "strata/config.h"
#include "strata/grain.h"
#include "strata/model.h"

namespace strata::engine {

inline constexpr int64_t kParamAlignNumel = kCodecBlockNumel;

struct FlatParameter {
  Parameter spec;
  int64_t offset = 0;  // elements from the start of the flat buffer

  int64_t numel() const { return spec.shape.numel(); }
};

struct FlatBuffer {
  std::vector<FlatParameter> parameters;  // in the order they lie
  int64_t content_numel = 0;              // up to the last parameter's end
  int64_t numel = 0;                      // with padding: a multiple of world * grain, or 0
  int shards = 1;                         // equal parts of it that ranks hold
  int shard_index = 0;                    // this rank's
  int64_t shard_numel = 0;                // numel / shards
  int64_t first_grain = 0;                // of this rank's shard, in its shard space
  GrainRange counted;                     // of its shard space: this rank's 1/world of the norm

  // This rank's shard as grains of its shard space.
  GrainRange shard() const { return {first_grain, first_grain + shard_numel / kGrainNumel}; }
  // Where this rank's shard starts, in elements of the flat buffer.
  int64_t shard_offset() const { return shard_index * shard_numel; }
};

// A parameter as a layer sees it: which unit owns it, and where it lies there.
struct ParameterRef {
  int unit = 0;
  bool trainable = true;
  int index = 0;  // in the flat buffer's parameters
};

struct Unit {
  std::string name;
  FlatBuffer trainable;
  FlatBuffer frozen;
  bool whole = false;  // every rank holds all of its parameters, on the device, between uses
  // The layer's parameters as declared, then the shared ones it names.
  std::vector<ParameterRef> parameters;
  // Units that must be gathered for this one: itself, and the owners of what it shares.
  std::vector<int> needs;
  // Units whose outputs add up to one, from the first to the last: this one alone, but for tiles.
  int first_tile = 0, last_tile = 0;
  int layer = 0;  // tiles of a layer count as one

  int64_t numel() const { return trainable.numel + frozen.numel; }
  // The unit whose output is this one's input; -1 for the first layer.
  int input_unit() const { return first_tile - 1; }
};

struct ZeroSharding {
  int rank = 0;
  int world_size = 1;
  int stage = 3;
  // With stage 3: units whose parameters all have at most so many elements are whole too.
  int64_t persistent_numel = 0;
};

class ModelLayout {
 public:
  // Throws ConfigError for a duplicate or unknown parameter name.
  ModelLayout(const Model& model, const ZeroSharding& sharding);

  const std::vector<Unit>& units() const { return units_; }
  const FlatParameter& parameter(const ParameterRef& ref) const;
  // Throws ConfigError naming the parameter.
  ParameterRef find(std::string_view name) const;

  // Where a flat parameter would start, in elements of this rank's shard space, if its flat buffer
  // lay there whole. The part of it in flat.shard() is the part that this rank holds.
  int64_t position(const FlatBuffer& flat, const FlatParameter& parameter) const {
    return flat.first_grain * kGrainNumel - flat.shard_offset() + parameter.offset;
  }

  int64_t trainable_grains() const { return trainable_grains_; }  // of this rank's shard space
  int64_t frozen_grains() const { return frozen_grains_; }
  int64_t parameter_count() const { return parameter_count_; }
  int rank() const { return sharding_.rank; }
  int world_size() const { return sharding_.world_size; }
  // Ranks that divide the optimizer state among them: the world, or 1 where each has all of it.
  int state_shards() const { return sharding_.stage == 0 ? 1 : sharding_.world_size; }
  int stage() const { return sharding_.stage; }

 private:
  FlatBuffer lay_out(const std::vector<Parameter>& parameters, bool trainable, bool whole) const;

  ZeroSharding sharding_;
  std::vector<Unit> units_;
  int64_t trainable_grains_ = 0;
  int64_t frozen_grains_ = 0;
  int64_t parameter_count_ = 0;
};

// A run of elements of the trainable shard space with one optimizer setting, in one unit; multiples
// of kCodecBlockNumel.
struct Segment {
  int64_t begin = 0;  // elements from the start of the shard space
  int64_t end = 0;
  ParameterSetting setting;
  // Of element `begin` in the whole model: all ranks' trainable flat buffers end to end, each in
  // whole grains. The same in every world.
  uint64_t first_index = 0;
};

// The rank's shard space as segments, in order, covering it without gaps. Where parameters lie does
// not depend on their settings, so that a group changes no other parameter's bits.
std::vector<Segment> segment_table(const ModelLayout& layout, const Config& config);

}  // namespace strata::engine
