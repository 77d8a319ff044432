#include "tests/engine/golden_run.h"

#include <cstddef>
#include <utility>

#include "kernels/ops/optimizer_ops.h"
#include "tests/engine/gpt2_harness.h"
#include "tests/engine/tiny_run.h"

namespace strata::testing_support {
namespace {

std::string golden_path(const std::string& name) {
  return std::string(STRATA_GOLDEN_DIR) + "/" + name + ".safetensors";
}

// Of the model in so many tiles; dropout has no parameters.
std::vector<Parameter> parameters_in(int64_t tiles) {
  std::vector<Parameter> parameters;
  for (const auto& layer : models::gpt2(golden_inputs().model, tiles).layers) {
    for (Parameter& parameter : layer->parameters()) parameters.push_back(std::move(parameter));
  }
  return parameters;
}

// What the parts of a row's logits have in it, one after the other.
std::vector<double> joined(const std::vector<std::vector<float>>& parts, int64_t rows) {
  std::vector<double> logits;
  for (int64_t row = 0; row < rows; ++row) {
    for (const std::vector<float>& part : parts) {
      const auto columns = static_cast<std::ptrdiff_t>(part.size()) / rows;
      const auto begin = part.begin() + row * columns;
      logits.insert(logits.end(), begin, begin + columns);
    }
  }
  return logits;
}

}  // namespace

GoldenInputs::GoldenInputs() : file(golden_path("gpt2")) {
  const nlohmann::json about = file.about();
  const auto& adamw = about.at("optimizer");
  model = models::Gpt2Config::from_json(about.at("config").dump(), golden_path("gpt2"));
  optimizer = {.lr = adamw.at("lr"),
               .beta1 = adamw.at("betas").at(0),
               .beta2 = adamw.at("betas").at(1),
               .eps = adamw.at("eps"),
               .weight_decay = adamw.at("weight_decay")};
  max_grad_norm = adamw.at("max_grad_norm");
  batches = read_batches(file);
  parameters = file.names("weight.");
}

const GoldenInputs& golden_inputs() {
  static const GoldenInputs inputs;
  return inputs;
}

std::vector<OwnedBatch> read_batches(const SafetensorsFixture& file) {
  const std::vector<int64_t> shape = file.shape("tokens");
  const std::vector<double> tokens = file.values("tokens"), targets = file.values("targets");
  std::vector<OwnedBatch> batches;
  for (int64_t step = 0; step < shape[0]; ++step) {
    OwnedBatch batch = OwnedBatch::empty({shape[1], shape[2]});
    const int64_t first = step * batch.shape.tokens();
    for (int64_t i = 0; i < batch.shape.tokens(); ++i) {
      const auto to = static_cast<size_t>(i), from = static_cast<size_t>(first + i);
      batch.tokens[to] = static_cast<int32_t>(tokens[from]);
      batch.targets[to] = static_cast<int32_t>(targets[from]);
    }
    batches.push_back(std::move(batch));
  }
  return batches;
}

SafetensorsFixture golden_file(const std::string& name) {
  return SafetensorsFixture(golden_path(name));
}

SafetensorsFixture golden_results(DType dtype) {
  return golden_file("gpt2_" + std::string(name(dtype)));
}

GoldenDropout::GoldenDropout() : file(golden_path("gpt2_dropout")) {
  const nlohmann::json about = file.about();
  model = models::Gpt2Config::from_json(about.at("config").dump(), golden_path("gpt2_dropout"));
  seed = about.at("seed");
}

Quantities golden_truth(const SafetensorsFixture& results) {
  Quantities truth;
  for (const char* name : {"loss", "logits"}) {
    truth[name] = results.values(std::string("true.") + name);
  }
  for (const std::string& parameter : golden_inputs().parameters) {
    truth["grad." + parameter] = results.values("true.grad." + parameter);
  }
  return truth;
}

void write_golden_weights(Engine& engine, DType round_to, int64_t tiles) {
  for (const Parameter& parameter : parameters_in(tiles)) {
    const std::string& whole = parameter.slice ? parameter.slice->of : parameter.name;
    const std::vector<double> stored = golden_inputs().file.values("weight." + whole);
    std::vector<float> weights(stored.begin(), stored.end());
    if (parameter.slice) weights = models::slice_of(weights, parameter);
    const auto numel = static_cast<int64_t>(weights.size());
    std::vector<std::byte> rounded(weights.size() * size_bytes(round_to));
    ops::cast(rounded.data(), round_to, weights.data(), DType::fp32, numel);
    ops::cast(weights.data(), DType::fp32, rounded.data(), round_to, numel);
    engine.write_parameter(parameter.name, weights);
  }
}

GoldenRun::GoldenRun(const Options& options)
    : tiles_(options.tiles), engine_(make_engine(options)) {
  write_golden_weights(engine_, options.round_weights_to, options.tiles);
}

Engine GoldenRun::make_engine(const Options& options) {
  const GoldenInputs& inputs = golden_inputs();
  Config config = tiny_config();
  config.micro_batch = inputs.batches.front().shape.batch;
  config.accumulation_steps = 1;
  config.dtype = options.dtype;
  config.loss_scale.constant = kGoldenLossScale;
  config.gradient_clipping = inputs.max_grad_norm;
  config.optimizer = options.optimizer;
  config.seed = options.seed;
  config.tiles = options.tiles;
  config.compute_threads = config.optimizer_threads = 1;  // tiny: handing work out costs more
  Engine::Options engine_options;
  engine_options.micro_batch = inputs.batches.front().shape;
  engine::Disturbance disturbance;
  disturbance.wrap_ops = [this](std::unique_ptr<ops::LayerOps> inner) {
    return plant_errors(std::move(inner), *probe_);
  };
  return EngineTestAccess::make(models::gpt2(options.model), config, engine_options, disturbance);
}

StepResult GoldenRun::step(size_t batch, const std::optional<Plant>& plant) {
  probe_->begin(plant);
  const Batch view = golden_inputs().batches.at(batch).view();
  return engine_.train_step({&view, 1});
}

Quantities GoldenRun::measure(size_t batch, const std::optional<Plant>& plant) {
  Quantities measured;
  const StepResult result = step(batch, plant);
  measured["loss"] = {result.loss};
  measured["logits"] = joined(probe_->logits(), golden_inputs().batches.at(batch).shape.tokens());
  for (const Parameter& parameter : parameters_in(tiles_)) {
    const auto scaled = engine_.read_parameter(parameter.name, StateKind::grad);
    auto& grad = measured["grad." + (parameter.slice ? parameter.slice->of : parameter.name)];
    const Shape& whole = parameter.slice ? parameter.slice->shape : parameter.shape;
    grad.resize(static_cast<size_t>(whole.numel()));
    for (size_t i = 0; i < scaled.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      grad[parameter.slice ? models::index_in_whole(parameter, at) : i] =
          scaled[i] / result.loss_scale;
    }
  }
  return measured;
}

}  // namespace strata::testing_support
