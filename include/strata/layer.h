// A unit of a model: parameters that are gathered and released together, and the compute on them.
//
// Implementations are called from the engine's driver thread; calls enqueue work and return. A
// layer owns no memory of the device: everything it touches comes in its context, sized by
// footprint(), which the plan asks before anything is allocated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "strata/batch.h"
#include "strata/random_key.h"
#include "strata/tensor.h"

namespace strata {

namespace ops {
class LayerOps;  // strata/layer_ops.h: what forward and backward compute with
}

// How a parameter starts, from the run's seed, the parameter's name and the element's index alone.
struct Initializer {
  enum class Kind : uint8_t { constant, normal } kind = Kind::constant;
  float value = 0;  // the constant, or the standard deviation
};

// What a tile's parameter is of the whole one: [begin, begin + n) of one dimension, and all of the
// others. It starts with the same values as there.
struct ParameterSlice {
  std::string of;    // the whole parameter's name
  Shape shape = {};  // and its shape, of as many dimensions as the slice's
  size_t dim = 0;
  int64_t begin = 0;
};

struct Parameter {
  std::string name;  // unique in the model: "transformer.h.0.attn.c_attn.weight"
  Shape shape;
  Initializer init;
  bool trainable = true;
  bool weight_decay = true;  // false: in the group without weight decay
  std::optional<ParameterSlice> slice = {};
};

// Bytes a layer needs on the device for one micro-batch.
struct LayerFootprint {
  size_t saved_bytes = 0;      // written by forward, read by backward, which may overwrite them
  size_t workspace_bytes = 0;  // used within one call
};

// What forward and backward get. Views hold until the enqueued work is done.
struct LayerContext {
  ops::LayerOps& ops;
  BatchShape batch;
  TensorView tokens;    // (B, T) int32; null view, as the next two, where the model takes none
  TensorView targets;   // (B, T) int32
  TensorView features;  // (B*T, F) in the model's dtype
  TensorView input;     // (B*T, C) output of the layer before; null view in the first layer
  std::span<const TensorView> params;  // own parameters as declared, then shared ones
  std::byte* saved = nullptr;          // saved_bytes, without training too; 64-byte aligned
  std::byte* workspace = nullptr;      // workspace_bytes; 64-byte aligned
  RandomKey random = {};               // one for forward, recomputation and backward
};

struct LayerForward : LayerContext {
  // (B*T, C); null view in a last layer without tiles, and where a recomputation wants only the
  // saved bytes.
  TensorView output = {};
  bool accumulate = false;  // a further tile: add to the output; otherwise overwrite it
  double* loss = nullptr;   // last layer: where the mean loss goes, in device memory
  bool training = true;     // false: no backward follows, and nothing is random
  float loss_scale = 1;     // last layer: the gradient's scale
};

struct ParameterGrad {
  TensorView view;          // null view: frozen
  bool accumulate = false;  // add to what is there; otherwise overwrite every element
};

struct LayerBackward : LayerContext {
  // (B*T, C), what forward has written together; null view but in the last layer's tiles.
  TensorView output = {};
  // (B*T, C), may be overwritten but by tiles; null view in the last layer.
  TensorView output_grad = {};
  TensorView input_grad = {};  // (B*T, C); null view in the first layer
  bool accumulate = false;     // another tile came before this one: add to input_grad
  std::span<const ParameterGrad> grads = {};  // as params
};

class Layer {
 public:
  virtual ~Layer() = default;

  virtual std::string name() const = 0;
  // The same list at every call. Order is the order of the training state's digest.
  virtual std::vector<Parameter> parameters() const = 0;
  // Names of parameters that another layer owns and this one uses too.
  virtual std::vector<std::string> shared_parameters() const { return {}; }
  // Channels of the output that the next layer takes; 0 for the last layer, unless it has tiles.
  virtual int64_t output_channels() const = 0;
  // Whether this is a further tile of the layer before it. A layer that is too wide to be gathered
  // at once is written as several, its tiles (memory-centric tiling, Rajbhandari et al. 2021,
  // section 5.1.3): they take the same input and add up to one output, one after the other, in
  // backward in reverse. The output of the last layer's tiles is what they tell each other of the
  // loss, which the last of them computes; it lasts until their backward.
  virtual bool is_further_tile() const { return false; }

  virtual LayerFootprint footprint(const ops::LayerOps& ops, const BatchShape& batch,
                                   DType dtype) const = 0;
  virtual void forward(const LayerForward& context) const = 0;
  // Where a forward of the last layer that was not for training left its scores (logits), (B*T, V)
  // in the model's dtype, in the saved bytes; a tile has so many of the columns, in order. A null
  // view for layers that have none.
  virtual TensorView scores(const LayerContext& /*context*/) const { return {}; }
  // Runs after a forward (or a recomputation) of the same micro-batch with the same saved bytes.
  virtual void backward(const LayerBackward& context) const = 0;
};

}  // namespace strata
