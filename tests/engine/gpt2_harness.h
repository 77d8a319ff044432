// A GPT-2 run layer by layer without an engine: buffers in plain vectors, with guard bytes around
// what layers may write and NaN in what they have not written.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/device/host_device.h"
#include "kernels/ops/layer_ops.h"
#include "kernels/ops/random.h"
#include "strata/model.h"
#include "strata/traffic.h"

namespace strata::models {

// `bytes` bytes, aligned, between guards; every byte 0xff, which is NaN in fp32 and bf16.
class GuardedBuffer {
 public:
  explicit GuardedBuffer(size_t bytes) : bytes_(bytes), storage_(bytes + 2 * kGuard + kAlign) {
    const auto address = reinterpret_cast<uintptr_t>(storage_.data()) + kGuard;
    begin_ = storage_.data() + kGuard + (kAlign - address % kAlign) % kAlign;
    std::fill(storage_.begin(), storage_.end(), kGuardByte);
    poison();
  }

  std::byte* data() { return begin_; }
  size_t bytes() const { return bytes_; }
  void poison() { std::fill(begin_, begin_ + bytes_, std::byte{0xff}); }

  bool guards_intact() const {
    const auto is_guard = [](std::byte b) { return b == kGuardByte; };
    const std::byte* const end = storage_.data() + storage_.size();
    return std::all_of(storage_.data(), static_cast<const std::byte*>(begin_), is_guard) &&
           std::all_of(static_cast<const std::byte*>(begin_) + bytes_, end, is_guard);
  }

 private:
  static constexpr size_t kGuard = 16384;
  static constexpr size_t kAlign = 64;
  static constexpr std::byte kGuardByte{0xa5};

  size_t bytes_;
  std::vector<std::byte> storage_;
  std::byte* begin_ = nullptr;
};

// Where an element of a tile's parameter is in the whole one.
inline size_t index_in_whole(const Parameter& parameter, int64_t i) {
  const ParameterSlice& slice = *parameter.slice;
  int64_t left = i, at = 0, stride = 1;
  for (size_t dim = parameter.shape.rank; dim-- > 0;) {
    const int64_t index = left % parameter.shape[dim] + (dim == slice.dim ? slice.begin : 0);
    at += index * stride;
    stride *= slice.shape[dim];
    left /= parameter.shape[dim];
  }
  return static_cast<size_t>(at);
}

// A tile's part of the whole parameter's values.
inline std::vector<float> slice_of(const std::vector<float>& whole, const Parameter& parameter) {
  std::vector<float> values;
  for (int64_t i = 0; i < parameter.shape.numel(); ++i) {
    values.push_back(whole[index_in_whole(parameter, i)]);
  }
  return values;
}

// An fp32 model with random parameters (layer norms' and biases' too, so that none can be left out
// unseen) and one random batch. Everything from `seed`; tiles start as slices of what they are
// without tiles, and draw the same random numbers.
class Gpt2Harness {
 public:
  Gpt2Harness(const Gpt2Config& config, BatchShape shape, uint64_t seed, int64_t tiles = 1)
      : model(gpt2(config, tiles)),
        batch(shape),
        queue_(make_host_queue({.name = "compute", .threads = 1}, {}, traffic_)),
        ops(ops::make_host_layer_ops(*queue_, 1)) {
    for (const auto& layer : gpt2(config).layers) {
      for (const Parameter& parameter : layer->parameters()) add_whole(parameter, seed);
    }
    for (const auto& layer : model.layers) {
      const auto i = static_cast<size_t>(&layer - model.layers.data());
      for (const Parameter& parameter : layer->parameters()) add_parameter(parameter);
      first_tile_.push_back(layer->is_further_tile() ? first_tile_.back() : i);
      block_.push_back(block_of(*layer, config));
      saved.emplace_back(layer->footprint(*ops, batch, DType::fp32).saved_bytes);
      boundaries.emplace_back(static_cast<size_t>(batch.tokens() * layer->output_channels()));
    }
    const ops::Philox philox{seed};
    for (int64_t i = 0; i < batch.tokens(); ++i) {
      const auto bits = philox(static_cast<uint64_t>(i), ~uint64_t{0});
      tokens.push_back(static_cast<int32_t>(bits[0] % static_cast<uint32_t>(config.vocab_size)));
      targets.push_back(static_cast<int32_t>(bits[1] % static_cast<uint32_t>(config.vocab_size)));
    }
  }

  // Mean loss. Poisons all activations first.
  double forward(bool training = true, float loss_scale = 1) {
    for (GuardedBuffer& buffer : saved) buffer.poison();
    for (size_t i = 0; i < model.layers.size(); ++i) run_forward(i, true, training, loss_scale);
    return loss_;
  }

  // One layer's forward; without output as in a recomputation.
  void run_forward(size_t i, bool with_output, bool training = true, float loss_scale = 1) {
    GuardedBuffer workspace(model.layers[i]->footprint(*ops, batch, DType::fp32).workspace_bytes);
    const auto params = params_of(i);
    LayerForward context{layer_context(i, params, workspace)};
    context.training = training;
    context.loss_scale = loss_scale;
    context.accumulate = i != first_tile_[i];
    if (with_output) context.output = boundary(i, output_of(i));
    if (i + 1 == model.layers.size()) context.loss = &loss_;
    model.layers[i]->forward(context);
    queue_->synchronize();
    guards_intact = guards_intact && workspace.guards_intact() && saved[i].guards_intact();
  }

  // Gradients of all parameters but the frozen ones, after a training forward. Of a shared one the
  // head overwrites and the embedding adds, as in an engine; with `prefilled`, everything adds.
  std::map<std::string, std::vector<float>> backward(const std::vector<std::string>& frozen = {},
                                                     float prefilled = 0) {
    std::map<std::string, std::vector<float>> grads;
    std::map<std::string, bool> written;
    for (const auto& [name, values] : parameters) {
      const bool is_frozen = std::find(frozen.begin(), frozen.end(), name) != frozen.end();
      if (!is_frozen) grads[name].assign(values.size(), prefilled);
      written[name] = prefilled != 0;
    }
    std::vector<float> output_grad, input_grad;
    for (size_t i = model.layers.size(); i-- > 0;) {
      const size_t first = first_tile_[i];
      if (is_last_tile(i)) input_grad.assign(first > 0 ? boundaries[first - 1].size() : 0, kNaN);
      run_backward(i, output_grad, input_grad, grads, written);
      if (i == first) output_grad = std::move(input_grad);
    }
    return grads;
  }

  Model model;
  BatchShape batch;
  std::map<std::string, std::vector<float>> parameters;
  std::map<std::string, Shape> shapes;
  std::vector<int32_t> tokens, targets;
  std::vector<GuardedBuffer> saved;            // a layer's
  std::vector<std::vector<float>> boundaries;  // a layer's output
  uint64_t step = 1;                           // of the layers' random numbers
  bool guards_intact = true;

 private:
  static constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

  // Tiles write the first one's.
  std::vector<float>& output_of(size_t i) { return boundaries[first_tile_[i]]; }
  bool is_last_tile(size_t i) const {
    return i + 1 == model.layers.size() || first_tile_[i + 1] == i + 1;
  }
  static uint32_t block_of(const Layer& layer, const Gpt2Config& config) {
    for (int64_t block = 0; block < config.n_layer; ++block) {
      const std::string name = "transformer.h." + std::to_string(block);
      if (layer.name() == name || layer.name().starts_with(name + ".")) {
        return static_cast<uint32_t>(block + 1);
      }
    }
    return 0;
  }

  void add_parameter(const Parameter& parameter) {
    const auto whole = whole_.at(parameter.slice ? parameter.slice->of : parameter.name);
    parameters[parameter.name] = parameter.slice ? slice_of(whole, parameter) : whole;
    shapes[parameter.name] = parameter.shape;
  }

  void add_whole(const Parameter& parameter, uint64_t seed) {
    std::vector<float>& values = whole_[parameter.name];
    values.resize(static_cast<size_t>(parameter.shape.numel()));
    // Large enough that every path through the model matters.
    ops::fill_normal(values.data(), 0, parameter.shape.numel(), 0.3f, seed, whole_.size());
    if (parameter.init.kind == Initializer::Kind::constant) {
      for (float& value : values) value += parameter.init.value;
    }
  }

  std::vector<std::string> names_of(size_t i) const {
    std::vector<std::string> names;
    for (const Parameter& parameter : model.layers[i]->parameters())
      names.push_back(parameter.name);
    for (const std::string& name : model.layers[i]->shared_parameters()) names.push_back(name);
    return names;
  }

  std::vector<TensorView> params_of(size_t i) {
    std::vector<TensorView> views;
    for (const std::string& name : names_of(i)) {
      views.push_back({parameters.at(name).data(), DType::fp32, shapes.at(name)});
    }
    return views;
  }

  TensorView boundary(size_t i, std::vector<float>& values) const {
    const int64_t channels = model.layers[i]->output_channels();
    if (channels == 0) return {};
    return {values.data(), DType::fp32, {batch.tokens(), channels}};
  }

  TensorView input_of(size_t i) {
    const size_t first = first_tile_[i];
    return first == 0 ? TensorView{} : boundary(first - 1, output_of(first - 1));
  }

  LayerContext layer_context(size_t i, std::span<const TensorView> params,
                             GuardedBuffer& workspace) {
    const Shape ids = {batch.batch, batch.sequence};
    return {*ops,
            batch,
            {tokens.data(), DType::int32, ids},
            {targets.data(), DType::int32, ids},
            {},
            input_of(i),
            params,
            saved[i].data(),
            workspace.data(),
            {.seed = 5, .step = step, .micro_batch = 2, .layer = block_[i]}};
  }

  void run_backward(size_t i, std::vector<float>& output_grad, std::vector<float>& input_grad,
                    std::map<std::string, std::vector<float>>& grads,
                    std::map<std::string, bool>& written) {
    GuardedBuffer workspace(model.layers[i]->footprint(*ops, batch, DType::fp32).workspace_bytes);
    const auto params = params_of(i);
    std::vector<ParameterGrad> views;
    for (const std::string& name : names_of(i)) {
      const auto it = grads.find(name);
      const bool is_frozen = it == grads.end();
      views.push_back(
          {is_frozen ? TensorView{} : TensorView{it->second.data(), DType::fp32, shapes.at(name)},
           std::exchange(written[name], true)});
    }
    LayerBackward context{layer_context(i, params, workspace)};
    if (first_tile_[i] == first_tile_.back()) {
      context.output = boundary(i, output_of(i));
    } else {
      context.output_grad = boundary(i, output_grad);
    }
    if (first_tile_[i] > 0) context.input_grad = boundary(first_tile_[i] - 1, input_grad);
    context.accumulate = !is_last_tile(i);
    context.grads = views;
    model.layers[i]->backward(context);
    queue_->synchronize();
    guards_intact = guards_intact && workspace.guards_intact() && saved[i].guards_intact();
  }

  std::map<std::string, std::vector<float>> whole_;
  std::vector<size_t> first_tile_;  // of a layer's
  std::vector<uint32_t> block_;     // likewise; 0: outside the blocks
  NullTrafficSink traffic_;
  std::unique_ptr<Queue> queue_;
  double loss_ = 0;

 public:
  std::unique_ptr<ops::LayerOps> ops;  // after the queue that it uses
};

}  // namespace strata::models
