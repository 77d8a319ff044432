// GPT-2's layers: gradients are those of the loss, and layers stay within what they asked for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "engine/model/tile_slices.h"
#include "strata/carver.h"
#include "strata/error.h"
#include "tests/engine/gpt2_harness.h"

namespace strata::models {
namespace {

using testing::ThrowsMessage;
using Tensors = std::map<std::string, std::vector<float>>;

struct Case {
  const char* name;
  Gpt2Config config;
  BatchShape batch;
  int64_t tiles = 1;
};

Gpt2Config sizes(int64_t vocab, int64_t channels, int64_t heads, int64_t layers, int64_t inner) {
  Gpt2Config config;
  config.vocab_size = vocab;
  config.n_positions = 8;
  config.n_embd = channels;
  config.n_layer = layers;
  config.n_head = heads;
  config.n_inner = inner;
  return config;
}

Gpt2Config with_dropout(Gpt2Config config) {
  config.embd_pdrop = 0.1;
  config.resid_pdrop = 0.2;
  config.attn_pdrop = 0.3;
  return config;
}

class Gpt2Layers : public testing::TestWithParam<Case> {
 protected:
  Gpt2Harness harness_{GetParam().config, GetParam().batch, /*seed=*/11, GetParam().tiles};
};

INSTANTIATE_TEST_SUITE_P(
    Shapes, Gpt2Layers,
    testing::Values(Case{"Plain", sizes(13, 16, 2, 2, 0), {2, 5}},
                    Case{"OneToken", sizes(5, 8, 1, 1, 0), {1, 1}},
                    // An MLP narrower than q, k, v together: the wide buffers' other case.
                    Case{"NarrowMlp", sizes(7, 24, 3, 1, 20), {3, 8}},
                    Case{"Dropout", with_dropout(sizes(13, 16, 2, 2, 0)), {2, 8}},
                    Case{"Tiles", sizes(13, 16, 2, 2, 0), {2, 5}, 2},
                    Case{"UnequalTiles", with_dropout(sizes(7, 24, 3, 1, 20)), {3, 8}, 7}),
    [](const auto& param_info) { return param_info.param.name; });

double norm(const std::vector<float>& values) {
  double sum = 0;
  for (const float value : values) sum += double{value} * value;
  return std::sqrt(sum);
}

// The gradient's direction and a random one, both of length 1, added: the first shows a wrong
// length, the second a wrong direction.
std::vector<double> probe_direction(const std::vector<float>& grad, uint64_t stream) {
  std::vector<float> random(grad.size());
  ops::fill_normal(random.data(), 0, static_cast<int64_t>(grad.size()), 1, 3, stream);
  const double grad_norm = norm(grad), random_norm = norm(random);
  std::vector<double> direction(grad.size());
  for (size_t i = 0; i < grad.size(); ++i) {
    direction[i] = (grad_norm > 0 ? grad[i] / grad_norm : 0) + random[i] / random_norm;
  }
  return direction;
}

TEST_P(Gpt2Layers, GradientsAreTheLosssSlopes) {
  harness_.forward();
  const Tensors grads = harness_.backward();
  uint64_t stream = 0;
  for (const auto& [name, grad] : grads) {
    std::vector<float>& values = harness_.parameters.at(name);
    const std::vector<float> original = values;
    const std::vector<double> direction = probe_direction(grad, ++stream);
    const auto loss_at = [&](double step) {
      for (size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<float>(original[i] + step * direction[i]);
      }
      return harness_.forward();
    };
    constexpr double kStep = 4e-3;
    // Richardson's extrapolation: the error of central differences falls with step^4.
    const double wide = (loss_at(2 * kStep) - loss_at(-2 * kStep)) / (4 * kStep);
    const double near = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
    const double slope = (4 * near - wide) / 3;
    values = original;
    double expected = 0;
    for (size_t i = 0; i < grad.size(); ++i) expected += direction[i] * grad[i];
    // Rounding: logits carry about 2^-22 of their size; divided by the step.
    const double rounding = 0x1p-20 / kStep;
    EXPECT_NEAR(slope, expected, 2e-3 * norm(grad) + rounding) << name;
  }
  EXPECT_TRUE(harness_.guards_intact);
}

TEST_P(Gpt2Layers, StayWithinTheirFootprint) {
  harness_.forward();
  const Tensors grads = harness_.backward();
  EXPECT_TRUE(harness_.guards_intact);
  // Whatever was read before it was written would have been NaN.
  for (const auto& [name, grad] : grads) {
    EXPECT_TRUE(std::all_of(grad.begin(), grad.end(), [](float g) { return std::isfinite(g); }))
        << name;
  }
}

TEST_P(Gpt2Layers, RecomputationWithoutOutputSavesTheSameBytes) {
  harness_.forward();
  const Tensors expected = harness_.backward();
  harness_.forward();
  for (size_t i = 1; i + 1 < harness_.model.layers.size(); ++i) {
    harness_.saved[i].poison();
    harness_.run_forward(i, /*with_output=*/false);
  }
  EXPECT_EQ(harness_.backward(), expected);
}

TEST_P(Gpt2Layers, AccumulatingAddsToEveryElement) {
  harness_.forward();
  const Tensors grads = harness_.backward();
  harness_.forward();
  const Tensors sums = harness_.backward({}, /*prefilled=*/64);
  for (const auto& [name, grad] : grads) {
    for (size_t i = 0; i < grad.size(); ++i) {
      // Each addition is rounded at 64's spacing of 2^-17: two in the tied table, and in tiles'
      // layer norms one a tile.
      const auto additions = static_cast<double>(std::max<int64_t>(2, GetParam().tiles));
      ASSERT_NEAR(sums.at(name)[i] - 64, grad[i], additions * 0x1p-17) << name << "[" << i << "]";
    }
  }
}

TEST_P(Gpt2Layers, AFrozenParameterChangesNoOtherGradient) {
  harness_.forward();
  Tensors expected = harness_.backward();
  const std::string tile = GetParam().tiles == 1 ? "" : ".tile1";
  const std::vector<std::string> frozen = {"transformer.wte.weight" + tile,
                                           "transformer.h.0.ln_1.bias",
                                           "transformer.h.0.mlp.c_fc.weight" + tile};
  for (const std::string& name : frozen) expected.erase(name);
  harness_.forward();
  EXPECT_EQ(harness_.backward(frozen), expected);
}

std::vector<float> difference(const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<float> result(a.size());
  for (size_t i = 0; i < a.size(); ++i) result[i] = a[i] - b[i];
  return result;
}

// Tiles compute what the block does, dropout and all, but for fp32's rounding of their sums.
TEST_P(Gpt2Layers, TilesAddUpToTheBlock) {
  Gpt2Harness whole(GetParam().config, GetParam().batch, /*seed=*/11);
  const double loss = whole.forward();
  const Tensors expected = whole.backward();
  for (const int64_t tiles : {2, 3, 100}) {
    SCOPED_TRACE(tiles);
    Gpt2Harness tiled(GetParam().config, GetParam().batch, /*seed=*/11, tiles);
    EXPECT_NEAR(tiled.forward(), loss, 1e-6 * loss);
    const Tensors grads = tiled.backward();
    for (const auto& layer : tiled.model.layers) {
      for (const Parameter& parameter : layer->parameters()) {
        const auto& of = expected.at(parameter.slice ? parameter.slice->of : parameter.name);
        const auto& own = parameter.slice ? slice_of(of, parameter) : of;
        EXPECT_LT(norm(difference(grads.at(parameter.name), own)), 1e-5 * norm(of))
            << parameter.name;
      }
    }
    EXPECT_TRUE(tiled.guards_intact);
  }
}

// Each kind of dropout counts, and draws anew every step; evaluation knows none.
TEST(Gpt2Dropout, IsInTrainingAlone) {
  const Gpt2Config plain = sizes(13, 16, 2, 2, 0);
  const auto losses = [](const Gpt2Config& config) {
    Gpt2Harness harness(config, {2, 8}, /*seed=*/11);
    std::vector<double> result = {harness.forward(/*training=*/false)};
    for (harness.step = 1; harness.step <= 2; ++harness.step) result.push_back(harness.forward());
    return result;
  };
  const double expected = losses(plain)[0];
  for (double Gpt2Config::*probability :
       {&Gpt2Config::embd_pdrop, &Gpt2Config::resid_pdrop, &Gpt2Config::attn_pdrop}) {
    Gpt2Config config = plain;
    config.*probability = 0.1;
    const std::vector<double> seen = losses(config);
    EXPECT_EQ(seen[0], expected);
    EXPECT_NE(seen[1], expected);
    EXPECT_NE(seen[2], expected);
    EXPECT_NE(seen[1], seen[2]);
  }
}

TEST_P(Gpt2Layers, EvaluationLeavesTheLogitsOfItsLoss) {
  const double loss = harness_.forward(/*training=*/false);
  const auto rows = static_cast<size_t>(harness_.batch.tokens());
  std::vector<double> totals(rows), at_target(rows);
  // One after the other in the vocabulary.
  const int64_t vocab = GetParam().config.vocab_size;
  const int64_t tiles = std::min(GetParam().tiles, vocab);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const auto [first, classes] = tile_range(vocab, tile, tiles);
    const size_t layer = harness_.model.layers.size() - static_cast<size_t>(tiles - tile);
    const auto* logits = reinterpret_cast<const float*>(harness_.saved[layer].data());
    for (size_t row = 0; row < rows; ++row, logits += classes) {
      for (int64_t v = 0; v < classes; ++v) {
        totals[row] += std::exp(double{logits[v]});
        if (first + v == harness_.targets[row]) at_target[row] = logits[v];
      }
    }
  }
  double sum = 0;
  for (size_t row = 0; row < rows; ++row) sum += std::log(totals[row]) - at_target[row];
  EXPECT_NEAR(loss, sum / static_cast<double>(rows), 1e-5 * (1 + std::abs(loss)));
}

TEST_P(Gpt2Layers, TheLossScaleMultipliesGradientsAndNotTheLoss) {
  const double loss = harness_.forward();
  const Tensors grads = harness_.backward();
  EXPECT_EQ(harness_.forward(true, /*loss_scale=*/1024), loss);
  const Tensors scaled = harness_.backward();
  for (const auto& [name, grad] : grads) {
    for (size_t i = 0; i < grad.size(); ++i) {
      ASSERT_NEAR(scaled.at(name)[i] / 1024, grad[i], 1e-5 * (1 + norm(grad))) << name;
    }
  }
}

TEST(Gpt2Model, NamesShapesAndDecayAreHuggingFaces) {
  const Model model = gpt2(sizes(13, 16, 2, 2, 0));
  std::vector<std::string> rows;
  for (const auto& layer : model.layers) {
    for (const Parameter& p : layer->parameters()) {
      std::string row = p.name + " " + std::to_string(p.shape[0]);
      if (p.shape.rank > 1) row += "x" + std::to_string(p.shape[1]);
      EXPECT_EQ(p.weight_decay, p.shape.rank > 1) << p.name;
      EXPECT_TRUE(p.trainable);
      if (row.find(".h.1.") == std::string::npos) rows.push_back(row);
    }
  }
  EXPECT_THAT(rows,
              testing::ElementsAre(
                  "transformer.wte.weight 13x16", "transformer.wpe.weight 8x16",
                  "transformer.h.0.ln_1.weight 16", "transformer.h.0.ln_1.bias 16",
                  "transformer.h.0.attn.c_attn.weight 16x48", "transformer.h.0.attn.c_attn.bias 48",
                  "transformer.h.0.attn.c_proj.weight 16x16", "transformer.h.0.attn.c_proj.bias 16",
                  "transformer.h.0.ln_2.weight 16", "transformer.h.0.ln_2.bias 16",
                  "transformer.h.0.mlp.c_fc.weight 16x64", "transformer.h.0.mlp.c_fc.bias 64",
                  "transformer.h.0.mlp.c_proj.weight 64x16", "transformer.h.0.mlp.c_proj.bias 16",
                  "transformer.ln_f.weight 16", "transformer.ln_f.bias 16"));
  EXPECT_THAT(model.layers.back()->shared_parameters(),
              testing::ElementsAre("transformer.wte.weight"));
}

TEST(Gpt2Model, TheSmallestReleasedModelHasItsKnownSize) {
  EXPECT_EQ(gpt2(Gpt2Config()).num_parameters(), 124'439'808);
}

TEST(Gpt2Model, InitialValuesFollowTheReleasedCode) {
  const Model model = gpt2(sizes(13, 16, 2, 2, 0));
  for (const auto& layer : model.layers) {
    for (const Parameter& p : layer->parameters()) {
      const bool is_normal = p.init.kind == Initializer::Kind::normal;
      EXPECT_EQ(is_normal, p.shape.rank > 1) << p.name;
      float expected = 0.02f;
      if (p.name.find("c_proj.weight") != std::string::npos) expected = 0.01f;  // 1/sqrt(2 * 2)
      if (p.name.find("ln_") != std::string::npos) expected = 1;
      if (p.name.ends_with(".bias")) expected = 0;
      EXPECT_FLOAT_EQ(p.init.value, expected) << p.name;
    }
  }
}

TEST(Carver, MeasuresWhatItHandsOut) {
  alignas(64) std::byte buffer[512];
  Carver measure(nullptr), carve(buffer);
  for (Carver* carver : {&measure, &carve}) {
    const TensorView first = carver->take(DType::bf16, {3, 11});
    const TensorView second = carver->take_bytes(1);
    const TensorView third = carver->take(DType::fp32, {16});
    EXPECT_EQ(carver->used_bytes(), 128u + 64u + 64u);
    if (carver == &measure) {
      EXPECT_FALSE(first || second || third);
    } else {
      EXPECT_EQ(first.data, buffer);
      EXPECT_EQ(second.data, buffer + 128);
      EXPECT_EQ(third.data, buffer + 192);
      EXPECT_EQ(first.bytes(), 66u);
    }
  }
}

std::string error_of(const std::string& text) {
  try {
    Gpt2Config::from_json(text, "config.json");
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Gpt2Config, TakesAConfigurationAsHuggingFaceWritesIt) {
  const Gpt2Config config = Gpt2Config::from_json(R"({
      "_name_or_path": "gpt2", "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
      "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0, "eos_token_id": 50256,
      "initializer_range": 0.05, "layer_norm_epsilon": 1e-06, "model_type": "gpt2", "n_ctx": 64,
      "n_embd": 32, "n_head": 4, "n_inner": null, "n_layer": 3, "n_positions": 64,
      "reorder_and_upcast_attn": false, "resid_pdrop": 0.25, "scale_attn_weights": true,
      "summary_type": "cls_index", "task_specific_params": {"text-generation": {"do_sample": true}},
      "torch_dtype": "float32", "transformers_version": "4.30.0", "use_cache": true,
      "vocab_size": 256})",
                                                  "config.json");
  EXPECT_EQ(config.vocab_size, 256);
  EXPECT_EQ(config.n_positions, 64);
  EXPECT_EQ(config.n_embd, 32);
  EXPECT_EQ(config.n_layer, 3);
  EXPECT_EQ(config.n_head, 4);
  EXPECT_EQ(config.n_inner, 0);
  EXPECT_FLOAT_EQ(config.layer_norm_epsilon, 1e-6f);
  EXPECT_FLOAT_EQ(config.initializer_range, 0.05f);
  EXPECT_EQ(config.attn_pdrop, 0.1);
  EXPECT_EQ(config.embd_pdrop, 0);
  EXPECT_EQ(config.resid_pdrop, 0.25);
}

TEST(Gpt2Config, RefusesWhatItCannotHonour) {
  EXPECT_EQ(error_of(R"({"resid_pdrop": 1.0})"),
            "config.json: \"resid_pdrop\" must be a number of at least 0 and below 1, found 1.0");
  EXPECT_EQ(error_of(R"({"attn_pdrop": -0.1})"),
            "config.json: \"attn_pdrop\" must be a number of at least 0 and below 1, found -0.1");
  EXPECT_EQ(error_of(R"({"activation_function": "relu"})"),
            "config.json: \"activation_function\" is \"relu\", which is not there yet: use "
            "\"gelu_new\"");
  EXPECT_EQ(error_of(R"({"model_type": "llama"})"),
            "config.json: \"model_type\" is \"llama\", which is not there yet: use \"gpt2\"");
  EXPECT_EQ(
      error_of(R"({"n_embd": 30, "n_head": 4})"),
      "config.json: \"n_embd\" 30 is not a multiple of \"n_head\" 4: heads need equal numbers "
      "of channels, so change one of them");
  EXPECT_EQ(error_of(R"({"n_ctx": 128})"),
            "config.json: \"n_ctx\" is 128 but \"n_positions\" is 1024, and both mean the longest "
            "sequence: remove \"n_ctx\"");
  EXPECT_EQ(error_of(R"({"hidden_size": 64})"),
            "config.json: \"hidden_size\" cannot be honoured: GPT-2's name for it is \"n_embd\"; "
            "use that");
  EXPECT_EQ(error_of(R"({"tie_word_embeddings": false})"),
            "config.json: \"tie_word_embeddings\" cannot be honoured: the head shares the "
            "embedding's weights; write true or remove it");
  EXPECT_EQ(error_of(R"({"n_layers": 3})"),
            "config.json: \"n_layers\" is not a known key: did you mean \"n_layer\"?");
  EXPECT_EQ(error_of(R"({"n_layer": 0})"),
            "config.json: \"n_layer\" must be an integer from 1 to 65536, found 0");
  EXPECT_THAT([] { Gpt2Config::from_file("/no/such/config.json"); },
              ThrowsMessage<ConfigError>("/no/such/config.json: cannot be read (No such file or "
                                         "directory): name a file that can"));
}

}  // namespace
}  // namespace strata::models
