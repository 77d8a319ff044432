// GPT-2 as Hugging Face's transformers keeps it: what transformers saved computes the same here,
// and what is written here is what transformers opened (tests/golden/transformers_gpt2.py).
#include "strata/gpt2_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/checkpoint/safetensors_file.h"
#include "kernels/ops/optimizer_ops.h"
#include "tests/engine/golden_bounds.h"
#include "tests/engine/tiny_run.h"

namespace strata::testing_support {
namespace {

namespace fs = std::filesystem;
using models::Gpt2Config;
using models::read_gpt2;
using models::write_gpt2;
using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

const fs::path kGolden = STRATA_GOLDEN_DIR;

// The golden weights.
void golden_weights(std::string_view name, int64_t first, std::span<float> out) {
  static std::map<std::string, std::vector<double>, std::less<>> weights;
  auto at = weights.find(name);
  if (at == weights.end()) {
    at = weights
             .emplace(std::string(name), golden_inputs().file.values("weight." + std::string(name)))
             .first;
  }
  std::copy_n(at->second.begin() + first, out.size(), out.begin());
}

std::vector<double> logits_of(const fs::path& directory) {
  const Gpt2Config gpt2 = Gpt2Config::from_file((directory / "config.json").string());
  const OwnedBatch& batch = golden_inputs().batches.front();
  Config config = tiny_config();
  config.dtype = DType::fp32;
  config.micro_batch = batch.shape.batch;
  Engine::Options options;
  options.micro_batch = batch.shape;
  options.initial_values = read_gpt2(directory.string(), gpt2);
  Engine engine(models::gpt2(gpt2), config, {}, options);
  const std::vector<float> scores = engine.scores(batch.view());
  return {scores.begin(), scores.end()};
}

std::map<std::string, std::string> contents(const fs::path& directory) {
  std::map<std::string, std::string> contents;
  for (const auto& entry : fs::directory_iterator(directory)) {
    std::ifstream file(entry.path(), std::ios::binary);
    contents[entry.path().filename().string()] = {std::istreambuf_iterator<char>(file), {}};
  }
  return contents;
}

class TransformersModel : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Saved, TransformersModel,
                         testing::Values("transformers/head_fp32", "transformers/base_fp16",
                                         "transformers/sharded_bf16", "exported"),
                         [](const auto& param_info) {
                           return fs::path(param_info.param).filename().string();
                         });

TEST_P(TransformersModel, HasTheLogitsThatTransformersComputes) {
  const fs::path directory = GetParam();
  const std::vector<double> truth =
      golden_file("transformers").values(directory.filename().string());
  const double error = largest_error(logits_of(kGolden / directory), truth);
  const Rounding rounding(DType::fp32, golden_truth(golden_results(DType::fp32)));
  const Deviation deviation = {"logits", error / largest_magnitude(truth),
                               kSigmas * rounding.sigma("logits")};
  print(deviation);
  EXPECT_LT(deviation.error, deviation.bound);
}

class Gpt2Files : public testing::Test {
 protected:
  const TemporaryDirectory directory_;
  const std::string path_ = directory_.file("model");
  const Gpt2Config gpt2_ = golden_inputs().model;
};

TEST_F(Gpt2Files, ExportsWhatTransformersOpened) {
  write_gpt2(path_, gpt2_, golden_weights, {.dtype = DType::bf16, .file_bytes = 20'000});
  const fs::path opened = kGolden / "exported";
  if (std::getenv("STRATA_UPDATE_GOLDEN") != nullptr) {
    fs::remove_all(opened);
    fs::copy(path_, opened);
  }
  EXPECT_EQ(contents(path_), contents(opened));
  EXPECT_EQ(contents(path_).size(), 4u);  // two of weights, index and config.json
}

// Every value, rounded as a parameter of that dtype is, from one file and from many.
TEST_F(Gpt2Files, AreReadBackAsWritten) {
  for (const DType dtype : {DType::fp32, DType::bf16, DType::fp16}) {
    for (const uint64_t file_bytes : {uint64_t{1} << 40, uint64_t{10'000}, uint64_t{0}}) {
      const TemporaryDirectory parent;
      const std::string path = parent.file("model");
      write_gpt2(path, gpt2_, golden_weights, {dtype, file_bytes});
      const ParameterReader read = read_gpt2(path, gpt2_);
      for (const std::string& name : golden_inputs().parameters) {
        const std::vector<double> whole = golden_inputs().file.values("weight." + name);
        std::vector<float> expected(whole.begin(), whole.end());
        const auto numel = static_cast<int64_t>(expected.size());
        std::vector<std::byte> rounded(expected.size() * size_bytes(dtype));
        ops::cast(rounded.data(), dtype, expected.data(), DType::fp32, numel);
        ops::cast(expected.data(), DType::fp32, rounded.data(), dtype, numel);
        std::vector<float> values(expected.size() - 3);
        read(name, 3, values);
        EXPECT_EQ(values, std::vector<float>(expected.begin() + 3, expected.end())) << name;
      }
    }
  }
}

// More elements than are moved at a time.
TEST_F(Gpt2Files, HoldTensorsLargerThanABuffer) {
  Gpt2Config wide = gpt2_;
  wide.vocab_size = 50'257;
  const auto pattern = [](std::string_view, int64_t first, std::span<float> out) {
    for (float& value : out) value = static_cast<float>(first++ % 251);
  };
  write_gpt2(path_, wide, pattern);
  const ParameterReader read = read_gpt2(path_, wide);
  std::vector<float> values(static_cast<size_t>(wide.vocab_size * wide.n_embd)), expected = values;
  read("transformer.wte.weight", 0, values);
  pattern("", 0, expected);
  EXPECT_EQ(values, expected);
}

TEST_F(Gpt2Files, KeepTheModelsDescription) {
  Gpt2Config config = gpt2_;
  config.n_inner = 7;
  config.layer_norm_epsilon = 1.25e-6f;
  config.initializer_range = 0.013f;
  config.attn_pdrop = 0.25;
  write_gpt2(path_, config, [](std::string_view, int64_t, std::span<float>) {});
  const Gpt2Config back = Gpt2Config::from_file(path_ + "/config.json");
  EXPECT_EQ(models::gpt2(back).description, models::gpt2(config).description);
  EXPECT_EQ(models::gpt2(back).config, models::gpt2(config, 3).config);
  EXPECT_EQ(back.n_inner, 7);
  EXPECT_EQ(back.layer_norm_epsilon, config.layer_norm_epsilon);
  EXPECT_EQ(back.initializer_range, config.initializer_range);
}

TEST_F(Gpt2Files, ThatFailMidwayLeaveNothing) {
  const auto fails = [](std::string_view name, int64_t, std::span<float>) {
    if (name == "transformer.h.1.ln_1.weight") throw ConfigError("no more");
  };
  EXPECT_THROW(write_gpt2(path_, gpt2_, fails, {.file_bytes = 10'000}), ConfigError);
  EXPECT_TRUE(directory_.empty());
}

TEST_F(Gpt2Files, AreWrittenIntoAnEmptyDirectoryAlone) {
  fs::create_directory(path_);
  write_gpt2(path_, gpt2_, golden_weights);
  EXPECT_THAT([&] { write_gpt2(path_, gpt2_, golden_weights); },
              ThrowsMessage<ConfigError>(AllOf(HasSubstr(path_), HasSubstr("not empty"))));
  EXPECT_THAT([&] { write_gpt2(path_ + "/config.json", gpt2_, golden_weights); },
              ThrowsMessage<ConfigError>(HasSubstr("config.json")));
}

TEST_F(Gpt2Files, RefuseValuesThatFp16DoesNotHold) {
  const auto large = [](std::string_view, int64_t, std::span<float> out) {
    std::fill(out.begin(), out.end(), 65520.0f);
  };
  EXPECT_THAT(
      [&] { write_gpt2(path_, gpt2_, large, {.dtype = DType::fp16}); },
      ThrowsMessage<ConfigError>(HasSubstr("'transformer.wte.weight' has the value 65520")));
  const auto infinite = [](std::string_view, int64_t, std::span<float> out) {
    std::fill(out.begin(), out.end(), -std::numeric_limits<float>::infinity());
  };
  write_gpt2(path_, gpt2_, infinite, {.dtype = DType::fp16});
}

// A directory with a whole GPT2LMHeadModel, that each test spoils in one way.
class Gpt2Import : public Gpt2Files {
 protected:
  using Tensors = std::vector<safetensors::Tensor>;

  // Saves the golden model's tensors, after `change`: zeros but for the token table and the head.
  template <typename Change>
  void save(const Change& change) {
    Tensors tensors;
    for (const std::string& name : golden_inputs().parameters) {
      tensors.push_back(
          {name, safetensors::ElementType::f32, golden_inputs().file.shape("weight." + name)});
    }
    change(tensors);
    fs::create_directory(path_);
    safetensors::File file =
        safetensors::File::create(path_ + "/model.safetensors", safetensors::Header(tensors));
    for (const std::string name : {"transformer.wte.weight", "lm_head.weight"}) {
      const safetensors::Tensor* table = file.header().find(name);
      if (table == nullptr) continue;
      std::vector<float> values(static_cast<size_t>(table->numel()));
      golden_weights("transformer.wte.weight", 0, values);
      file.write(*table, 0, std::as_bytes(std::span(values)));
    }
  }
  static safetensors::Tensor& find(Tensors& tensors, const std::string& name) {
    return *std::find_if(tensors.begin(), tensors.end(),
                         [&](const safetensors::Tensor& tensor) { return tensor.name == name; });
  }
  void expect_refused(const std::string& says) {
    EXPECT_THAT([&] { read_gpt2(path_, gpt2_); },
                ThrowsMessage<ConfigError>(AllOf(HasSubstr(path_), HasSubstr(says))));
  }
  void write(const std::string& name, const std::string& text) {
    fs::create_directory(path_);
    std::ofstream(path_ + "/" + name) << text;
  }
};

TEST_F(Gpt2Import, TakesATiedHeadAndOldMasks) {
  save([&](Tensors& tensors) {
    tensors.push_back({"lm_head.weight", safetensors::ElementType::f32,
                       find(tensors, "transformer.wte.weight").shape});
    tensors.push_back({"transformer.h.0.attn.bias", safetensors::ElementType::u8, {1, 1, 16, 16}});
    tensors.push_back({"transformer.h.1.attn.masked_bias", safetensors::ElementType::i64, {}});
  });
  std::vector<float> values(2), expected(2);
  read_gpt2(path_, gpt2_)("transformer.wte.weight", 5, values);
  golden_weights("transformer.wte.weight", 5, expected);
  EXPECT_EQ(values, expected);
  EXPECT_THROW(read_gpt2(path_, gpt2_)("transformer.wpe", 0, values), ConfigError);
}

TEST_F(Gpt2Import, RefusesAHeadOfItsOwn) {
  save([&](Tensors& tensors) {
    tensors.push_back({"lm_head.weight", safetensors::ElementType::f32,
                       find(tensors, "transformer.wte.weight").shape});
  });
  safetensors::File file = safetensors::File::open_to_write(path_ + "/model.safetensors");
  const safetensors::Tensor& head = file.tensor("lm_head.weight");
  const float other = 77;
  file.write(head, head.bytes - sizeof(other), std::as_bytes(std::span(&other, 1)));
  expect_refused("head is tied");
}

TEST_F(Gpt2Import, NamesWhatIsMissingUnknownOrOfAnotherShapeOrType) {
  const std::string file = path_ + "/model.safetensors";
  save([&](Tensors& tensors) { find(tensors, "transformer.ln_f.bias").name = "ln_f.other"; });
  expect_refused("the model's 'transformer.ln_f.bias' is missing");
  fs::remove(file);
  save([&](Tensors& tensors) {
    tensors.push_back({"score.weight", safetensors::ElementType::f16, {2, 24}});
  });
  expect_refused("'score.weight' is not a parameter of the model");
  fs::remove(file);
  save([&](Tensors& tensors) {
    find(tensors, "transformer.h.0.attn.c_attn.weight").shape = {72, 24};
  });
  expect_refused("has the shape [72, 24] and the model's has [24, 72]");
  fs::remove(file);
  save([&](Tensors& tensors) {
    find(tensors, "transformer.ln_f.bias").type = safetensors::ElementType::f64;
  });
  expect_refused("'transformer.ln_f.bias' is of dtype F64");
  fs::remove(file);
  save([&](Tensors& tensors) {
    tensors.push_back({"ln_f.bias", safetensors::ElementType::f16, {24}});
  });
  expect_refused("ln_f.bias' is there a second time");
}

TEST_F(Gpt2Import, RefusesAnotherNumberOfHeads) {
  save([](Tensors&) {});
  write("config.json", R"({"vocab_size": 65, "n_positions": 16, "n_embd": 24, "n_head": 2})");
  expect_refused("\"n_head\" is 2, and the model to start from these weights has 3");
}

TEST_F(Gpt2Import, NamesADirectoryThatIsNoModel) {
  expect_refused("neither model.safetensors nor model.safetensors.index.json");
  write("model.safetensors.index.json", "{}");
  expect_refused("\"weight_map\"");
  write("model.safetensors.index.json", R"({"weight_map": {"a": "../outside.safetensors"}})");
  expect_refused("\"a\" lies in \"../outside.safetensors\"");
  write("model.safetensors.index.json", R"({"weight_map": {"a": 3}})");
  expect_refused("\"a\" lies in 3");
  write("model.safetensors.index.json", R"({"weight_map": {"a": ".."}})");
  expect_refused("\"a\" lies in \"..\"");
}

TEST_F(Gpt2Import, NamesADamagedFile) {
  save([](Tensors&) {});
  fs::resize_file(path_ + "/model.safetensors", 5000);
  EXPECT_THAT([&] { read_gpt2(path_, gpt2_); },
              ThrowsMessage<CorruptionError>(HasSubstr("is damaged")));
}

}  // namespace
}  // namespace strata::testing_support
