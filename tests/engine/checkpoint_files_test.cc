// A checkpoint's bytes are what tests/golden/checkpoint.py, which knows safetensors alone, read.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/checkpoint/checkpoint_reader.h"
#include "engine/checkpoint/gpt2_tensors.h"
#include "engine/checkpoint/moment_tensors.h"
#include "engine/comm/lone_rank.h"
#include "kernels/ops/optimizer_ops.h"
#include "tests/temporary_directory.h"

namespace strata::engine {
namespace {

namespace fs = std::filesystem;

const fs::path kCommitted = fs::path(STRATA_GOLDEN_DIR) / "checkpoint";
constexpr const char* kFrozen = "transformer.wpe.weight";

models::Gpt2Config small_gpt2() {
  models::Gpt2Config config;
  config.vocab_size = 17;
  config.n_positions = 8;
  config.n_embd = 12;
  config.n_layer = 1;
  config.n_head = 2;
  return config;
}

// The script's formula. Few enough bits for bf16.
float value(StateKind kind, const std::string& parameter, int64_t index) {
  const auto seed = static_cast<int64_t>(parameter.size());
  const auto number = static_cast<float>((index * 37 + seed) % 101);
  return kind == StateKind::exp_avg_sq ? (number + 1) / 4096 : (number - 50) / 64;
}

std::vector<float> values(StateKind kind, const Parameter& parameter, int64_t numel) {
  std::vector<float> all(static_cast<size_t>(numel), 0.0f);
  for (int64_t i = 0; i < parameter.shape.numel(); ++i) {
    all[static_cast<size_t>(i)] = value(kind, parameter.name, i);
  }
  return all;
}

safetensors::Tensor tensor_of(const Parameter& parameter, safetensors::ElementType type) {
  const auto& dims = parameter.shape.dims;
  return {parameter.name, type, {dims.begin(), dims.begin() + parameter.shape.rank}};
}

CheckpointWriter::Contents contents(const std::vector<Parameter>& parameters) {
  using safetensors::ElementType;
  CheckpointWriter::Contents contents;
  for (const Parameter& parameter : parameters) {
    if (parameter.name == kFrozen) {
      contents["frozen.safetensors"] = {tensor_of(parameter, ElementType::bf16)};
      continue;
    }
    const auto master = tensor_of(parameter, ElementType::f32);
    contents["master.safetensors"].push_back(master);
    for (const char* file : {"exp_avg.safetensors", "exp_avg_sq.safetensors"}) {
      for (auto& tensor : moment_tensors(parameter.name, master.shape, Codec::int8)) {
        contents[file].push_back(std::move(tensor));
      }
    }
  }
  return contents;
}

void write_frozen(CheckpointWriter& checkpoint, const Parameter& parameter) {
  const int64_t numel = parameter.shape.numel();
  std::vector<std::byte> stored(static_cast<size_t>(numel) * 2);
  ops::cast(stored.data(), DType::bf16, values(StateKind::frozen, parameter, numel).data(),
            DType::fp32, numel);
  checkpoint.write("frozen.safetensors", parameter.name, 0, stored);
}

void write_trainable(CheckpointWriter& checkpoint, const Parameter& parameter) {
  const int64_t numel = parameter.shape.numel();
  // In two pieces, as of two ranks.
  const std::vector<float> master = values(StateKind::master, parameter, numel);
  const auto bytes = std::as_bytes(std::span(master));
  const size_t cut = bytes.size() / 8 * 4;
  checkpoint.write("master.safetensors", parameter.name, 0, bytes.first(cut));
  checkpoint.write("master.safetensors", parameter.name, cut, bytes.subspan(cut));
  for (const StateKind kind : {StateKind::exp_avg, StateKind::exp_avg_sq}) {
    const std::vector<float> moments = values(kind, parameter, kGrainNumel);
    std::vector<std::byte> stored(static_cast<size_t>(stored_bytes(Codec::int8, kGrainNumel)));
    std::vector<std::byte> scratch(stored.size());
    ops::encode_moments(kind, Codec::int8, moments.data(), kGrainNumel, /*key=*/3, stored.data());
    write_moments(checkpoint, {.file = checkpoint_file(kind),
                               .parameter = parameter.name,
                               .count = numel,
                               .codec = Codec::int8,
                               .stored = stored.data(),
                               .scratch = scratch.data()});
  }
}

void write_checkpoint(const std::string& path) {
  const Model model = models::gpt2(small_gpt2());
  const std::vector<Parameter> parameters = models::gpt2_parameters(small_gpt2());
  LoneRank rank;
  CheckpointWriter checkpoint(path, contents(parameters), rank.comm());
  for (const Parameter& parameter : parameters) {
    parameter.name == kFrozen ? write_frozen(checkpoint, parameter)
                              : write_trainable(checkpoint, parameter);
  }
  Manifest manifest;
  manifest.run = {.step = 3, .seed = 7, .data_position = 96, .loss_scale = 65536};
  manifest.model = model.description;
  manifest.model_config = model.config;
  manifest.moment_codec = Codec::int8;
  checkpoint.finish(std::move(manifest));
}

std::map<std::string, std::string> bytes_of(const fs::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(directory)) {
    std::ifstream file(entry.path(), std::ios::binary);
    files[entry.path().filename().string()] = {std::istreambuf_iterator<char>(file), {}};
  }
  return files;
}

TEST(CheckpointFilesTest, AreThoseThatTheScriptRead) {
  const testing_support::TemporaryDirectory directory;
  const std::string path = directory.file("checkpoint");
  write_checkpoint(path);
  if (std::getenv("STRATA_UPDATE_GOLDEN") != nullptr) {
    fs::remove_all(kCommitted);
    fs::copy(path, kCommitted);
  }
  EXPECT_TRUE(bytes_of(path) == bytes_of(kCommitted));
  EXPECT_EQ(bytes_of(path).size(), 5u);
}

// As the run that wrote it would.
TEST(CheckpointFilesTest, AreReadBack) {
  CheckpointReader checkpoint(kCommitted.string());
  uint64_t bytes = 0;
  checkpoint.verify([&](uint64_t of_piece) { bytes += of_piece; });
  EXPECT_GT(bytes, 0u);
  EXPECT_EQ(checkpoint.manifest().run.step, 3);
  for (const Parameter& parameter : models::gpt2_parameters(small_gpt2())) {
    if (parameter.name == kFrozen) continue;
    const int64_t numel = parameter.shape.numel();
    std::vector<float> master(static_cast<size_t>(numel));
    checkpoint.read("master.safetensors", parameter.name, 0,
                    std::as_writable_bytes(std::span(master)));
    EXPECT_EQ(master, values(StateKind::master, parameter, numel)) << parameter.name;
  }
}

}  // namespace
}  // namespace strata::engine
