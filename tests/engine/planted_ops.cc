#include "tests/engine/planted_ops.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <utility>

#include "kernels/device/device.h"
#include "kernels/ops/optimizer_ops.h"

namespace strata::testing_support {
namespace {

std::vector<float> widened(const TensorView& view) {
  std::vector<float> values(static_cast<size_t>(view.numel()));
  ops::cast(values.data(), DType::fp32, view.data, view.dtype, view.numel());
  return values;
}

// What one call of one method writes, and what else is in it.
struct Output {
  std::string_view name;
  TensorView view = {};  // null view: not wanted
  TensorView base = {};  // what the op adds to; null view: nothing
  TensorView bias = {};  // null view: none

  Output(std::string_view output, const TensorView& written, const TensorView& added_to = {},
         const TensorView& with_bias = {})
      : name(output), view(written), base(added_to), bias(with_bias) {}
  Output(std::string_view output, const ops::GradOutput& grad)
      : name(output), view(grad.view), base(grad.accumulate ? grad.view : TensorView{}) {}
};

}  // namespace

std::string name(const Plant& plant) {
  std::string text{plant.output};
  if (plant.call != Plant::kEveryCall) text += ", call " + std::to_string(plant.call);
  if (plant.kind == Plant::Kind::bias_dropped) text += ", without bias";
  if (plant.kind == Plant::Kind::infinite) text += ", infinite";
  return text;
}

void OpProbe::begin(const std::optional<Plant>& plant, const std::optional<Interlude>& interlude) {
  plant_ = plant;
  interlude_ = interlude;
  calls_.clear();
  biased_calls_.clear();
  logits_.clear();
}

class PlantedOps final : public ops::LayerOps {
 public:
  PlantedOps(std::unique_ptr<ops::LayerOps> inner, OpProbe& probe)
      : inner_(std::move(inner)), probe_(probe) {}

  Queue& queue() override { return inner_->queue(); }

  void embedding_forward(const Embedding& op) override {
    run({{"embedding_forward.out", op.out, op.accumulate ? op.out : TensorView{}}},
        [&] { inner_->embedding_forward(op); });
  }
  void embedding_backward(const EmbeddingBackward& op) override {
    run({{"embedding_backward.token_table", op.token_table},
         {"embedding_backward.position_table", op.position_table}},
        [&] { inner_->embedding_backward(op); });
  }
  void layer_norm_forward(const LayerNorm& op) override {
    run({{"layer_norm_forward.out", op.out, {}, op.bias},
         {"layer_norm_forward.mean", op.mean},
         {"layer_norm_forward.rstd", op.rstd}},
        [&] { inner_->layer_norm_forward(op); });
  }
  void layer_norm_backward(const LayerNormBackward& op) override {
    run({{"layer_norm_backward.x_grad", op.x_grad, op.residual_grad},
         {"layer_norm_backward.weight_grad", op.weight_grad},
         {"layer_norm_backward.bias_grad", op.bias_grad}},
        [&] { inner_->layer_norm_backward(op); });
  }
  size_t layer_norm_workspace_bytes(int64_t rows, int64_t channels) const override {
    return inner_->layer_norm_workspace_bytes(rows, channels);
  }
  void rms_norm_forward(const RmsNorm& op) override { inner_->rms_norm_forward(op); }
  void rms_norm_backward(const RmsNormBackward& op) override { inner_->rms_norm_backward(op); }
  size_t rms_norm_workspace_bytes(int64_t rows, int64_t channels) const override {
    return inner_->rms_norm_workspace_bytes(rows, channels);
  }
  void add(const Add& op) override {
    run({{"add.out", op.out, op.y}}, [&] { inner_->add(op); });
  }
  void linear_forward(const Linear& op) override {
    run({{"linear_forward.out", op.out, op.residual, op.bias}},
        [&] { inner_->linear_forward(op); });
  }
  void linear_backward(const LinearBackward& op) override {
    run({{"linear_backward.x_grad", op.x_grad},
         {"linear_backward.weight_grad", op.weight_grad},
         {"linear_backward.bias_grad", op.bias_grad}},
        [&] { inner_->linear_backward(op); });
  }
  size_t linear_workspace_bytes(DType dtype, int64_t rows, int64_t in, int64_t out,
                                bool weight_transposed) const override {
    return inner_->linear_workspace_bytes(dtype, rows, in, out, weight_transposed);
  }
  void gelu_forward(const Gelu& op) override {
    run({{"gelu_forward.out", op.out}}, [&] { inner_->gelu_forward(op); });
  }
  void gelu_backward(const GeluBackward& op) override {
    run({{"gelu_backward.x_grad", op.x_grad}}, [&] { inner_->gelu_backward(op); });
  }
  void dropout(const Dropout& op) override {
    run({{"dropout.out", op.out, op.residual}}, [&] { inner_->dropout(op); });
  }
  void attention_forward(const Attention& op) override {
    run({{"attention_forward.out", op.out}, {"attention_forward.saved", op.saved}},
        [&] { inner_->attention_forward(op); });
  }
  void attention_backward(const AttentionBackward& op) override {
    run({{"attention_backward.qkv_grad", op.qkv_grad}}, [&] { inner_->attention_backward(op); });
  }
  size_t attention_saved_bytes(DType dtype, const Shape& qkv, int64_t heads) const override {
    return inner_->attention_saved_bytes(dtype, qkv, heads);
  }
  size_t attention_workspace_bytes(DType dtype, const Shape& qkv, int64_t heads) const override {
    return inner_->attention_workspace_bytes(dtype, qkv, heads);
  }
  void cross_entropy(const CrossEntropy& op) override {
    // Before the gradient takes their place.
    see_logits(op.logits, /*more=*/false);
    run({{"cross_entropy.logits_grad", op.logits_grad}}, [&] { inner_->cross_entropy(op); });
    if (strikes("cross_entropy.loss")) spoil_loss(op.loss);
  }
  size_t cross_entropy_workspace_bytes(int64_t rows) const override {
    return inner_->cross_entropy_workspace_bytes(rows);
  }
  void cross_entropy_part(const CrossEntropyPart& op) override {
    see_logits(op.logits, op.accumulate);
    run({{"cross_entropy_part.statistics", op.statistics}},
        [&] { inner_->cross_entropy_part(op); });
  }
  void cross_entropy_finish(const CrossEntropyFinish& op) override {
    run({{"cross_entropy_finish.statistics", op.statistics}},
        [&] { inner_->cross_entropy_finish(op); });
    if (strikes("cross_entropy_finish.loss")) spoil_loss(op.loss);
  }
  void cross_entropy_part_backward(const CrossEntropyPartBackward& op) override {
    run({{"cross_entropy_part_backward.logits_grad", op.logits_grad}},
        [&] { inner_->cross_entropy_part_backward(op); });
  }
  DType product_dtype(DType dtype) const override { return inner_->product_dtype(dtype); }

 private:
  // Counts this computation of `output`, and says whether the error is planted here. Computations
  // with a bias have a count of their own, for errors of the bias.
  bool strikes(std::string_view output, bool of_bias = false) {
    const int call = (of_bias ? probe_.biased_calls_ : probe_.calls_)[output]++;
    const auto& plant = probe_.plant_;
    return plant && (plant->kind == Plant::Kind::bias_dropped) == of_bias &&
           plant->output == output && (plant->call == Plant::kEveryCall || plant->call == call);
  }
  void see_logits(const TensorView& logits, bool more) {
    queue().run([this, logits, more] {
      if (!more) probe_.logits_.clear();
      probe_.logits_.push_back(widened(logits));
    });
  }

  void spoil_loss(double* loss) {
    const double factor =
        plants_infinity() ? std::numeric_limits<double>::infinity() : 1 + kPlantedError;
    queue().run([loss, factor] { *loss *= factor; });
  }

  bool plants_infinity() const { return probe_.plant_->kind == Plant::Kind::infinite; }

  // Before the computation of `output` is counted.
  void interrupt(std::string_view output) {
    const auto& interlude = probe_.interlude_;
    if (!interlude || interlude->output != output) return;
    if (probe_.calls_[output] != interlude->call) return;
    queue().run([this] { probe_.interlude_->action(); });
  }

  template <typename Call>
  void run(std::initializer_list<Output> outputs, const Call& call) {
    std::vector<std::pair<Output, std::shared_ptr<std::vector<float>>>> spoiled;
    for (const Output& output : outputs) {
      if (!output.view) continue;
      interrupt(output.name);
      if (!strikes(output.name)) continue;
      auto base = std::make_shared<std::vector<float>>(static_cast<size_t>(output.view.numel()));
      if (output.base) {
        queue().run([base, from = output.base] { *base = widened(from); });
      }
      spoiled.emplace_back(output, std::move(base));
    }
    call();
    for (const auto& [output, base] : spoiled) spoil(output.view, base);
    for (const Output& output : outputs) {
      if (output.bias && strikes(output.name, /*of_bias=*/true)) drop_bias(output);
    }
  }

  void spoil(const TensorView& view, const std::shared_ptr<std::vector<float>>& base) {
    queue().run([view, base, infinite = plants_infinity()] {
      std::vector<float> values = widened(view);
      if (infinite) {
        values[0] = std::numeric_limits<float>::infinity();
      } else {
        for (size_t i = 0; i < values.size(); ++i) {
          values[i] += static_cast<float>(kPlantedError) * (values[i] - (*base)[i]);
        }
      }
      ops::cast(view.data, view.dtype, values.data(), DType::fp32, view.numel());
    });
  }

  void drop_bias(const Output& output) {
    queue().run([view = output.view, bias_view = output.bias] {
      std::vector<float> values = widened(view);
      const std::vector<float> bias = widened(bias_view);
      for (size_t i = 0; i < values.size(); ++i) values[i] -= bias[i % bias.size()];
      ops::cast(view.data, view.dtype, values.data(), DType::fp32, view.numel());
    });
  }

  const std::unique_ptr<ops::LayerOps> inner_;
  OpProbe& probe_;
};

std::unique_ptr<ops::LayerOps> plant_errors(std::unique_ptr<ops::LayerOps> inner, OpProbe& probe) {
  return std::make_unique<PlantedOps>(std::move(inner), probe);
}

}  // namespace strata::testing_support
