// `strata checkpoint` as a person meets it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "engine/checkpoint/checkpoint_reader.h"
#include "strata/gpt2_files.h"
#include "tests/tools/train_command.h"

namespace strata::testing_support {
namespace {

namespace fs = std::filesystem;
using engine::CheckpointReader;
using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

class CheckpointCommandTest : public TrainCommandTest {
 protected:
  // Trains a run, and gives its newest checkpoint.
  std::string trained(const std::string& run, const std::string& more = "--steps 2") const {
    const Result result = train(more + " --output " + path(run));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return path(run + "/checkpoints/latest");
  }
  Result checkpoint(const std::string& arguments) const {
    return strata("checkpoint " + arguments);
  }
  void expect_done(const std::string& arguments) const {
    const Result result = checkpoint(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
  }
  static std::vector<float> master(CheckpointReader& checkpoint, const std::string& name) {
    const std::string file = "master.safetensors";
    const auto* const tensor = checkpoint.find(file, name);
    std::vector<float> values(static_cast<size_t>(tensor->numel()));
    checkpoint.read(file, name, 0, std::as_writable_bytes(std::span(values)));
    return values;
  }
  static void flip_bit(const std::string& file, uint64_t offset) {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(static_cast<std::streamoff>(offset));
    const int byte = stream.get();
    stream.seekp(static_cast<std::streamoff>(offset));
    stream.put(static_cast<char>(byte ^ 1));
    ASSERT_TRUE(stream.good()) << file;
  }
  // The digest of a step more.
  std::string digest_after(const std::string& checkpoint) const {
    const Result result = train("--steps 3 --digest --resume " + checkpoint);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.out.substr(result.out.find("digest "));
  }
};

TEST_F(CheckpointCommandTest, InspectSaysWhatACheckpointAndARunHold) {
  const std::string newest = trained("run", "--steps 2 --checkpoint-every 1 --seed 5");
  const Result text = checkpoint("inspect --tensors " + path("run"));
  ASSERT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out,
              AllOf(testing::ContainsRegex("^run [0-9a-f]+\ncheckpoints: 2, the newest:\n"),
                    HasSubstr("/step-00000002\nstep 2, seed 5, no loss scale, "),
                    HasSubstr("model: GPT-2, 2 layers"),
                    HasSubstr("parameters, of which 0 frozen; moments in fp32"),
                    testing::ContainsRegex("master.safetensors +F32 +\\[64,192\\] +"
                                           "transformer.h.1.attn.c_attn.weight\n")));

  const Result machine = checkpoint("inspect --json " + newest);
  ASSERT_EQ(machine.exit_code, 0) << machine.err;
  const json said = json::parse(machine.out);
  EXPECT_TRUE(said.at("run").is_null());
  const json& held = said.at("checkpoint");
  EXPECT_EQ(held.at("step"), 2);
  EXPECT_EQ(held.at("seed"), 5);
  EXPECT_GT(held.at("data_position"), 0);
  EXPECT_EQ(held.at("model_config").at("n_embd"), 64);
  const auto gpt2 = models::Gpt2Config::from_json(model_.dump(), "model.json");
  EXPECT_EQ(held.at("parameters"), models::gpt2(gpt2).num_parameters());
  EXPECT_FALSE(held.contains("tensors"));
  for (const json& file : held.at("files")) {
    EXPECT_EQ(file.at("bytes"), fs::file_size(newest + "/" + file.at("name").get<std::string>()));
  }
}

TEST_F(CheckpointCommandTest, ARunWithoutCheckpointsIsSaidToHaveNone) {
  trained("run");
  fs::remove_all(path("run/checkpoints"));
  const Result result = checkpoint("inspect " + path("run"));
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, HasSubstr("checkpoints: 0\n"));
  expect_refused(checkpoint("verify " + path("run")), 2, "has no checkpoint yet");
  expect_refused(checkpoint("inspect " + directory_), 2, "neither a run's directory");
}

TEST_F(CheckpointCommandTest, VerifyFindsTheByteThatIsNotAsItWasWritten) {
  config_["strata"]["moment_codec"] = "int8";
  const std::string newest = trained("run", "--steps 2 --checkpoint-every 1");
  const Result whole = checkpoint("verify " + path("run"));
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  EXPECT_THAT(whole.out, testing::ContainsRegex("00000001: step 1, [0-9]+ bytes checked"));
  EXPECT_THAT(whole.out, testing::ContainsRegex("00000002: step 2, [0-9]+ bytes checked"));
  EXPECT_EQ(whole.err, "");
  for (const char* name : {"master.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors"}) {
    const std::string file = newest + "/" + name;
    const CheckpointReader reader(newest);
    // Its last piece begins there.
    const auto& header = reader.header(name);
    const auto& tensor = header.tensors().back();
    const auto& piece = reader.manifest().pieces.at(name).at(tensor.name).back();
    const uint64_t begin = header.data_begin() + tensor.begin + piece.first;
    flip_bit(file, fs::file_size(file) - 1);
    expect_refused(checkpoint("verify " + newest), 1,
                   "/" + std::string(name) + "' at byte " + std::to_string(begin) + ": ");
    expect_refused(checkpoint("reshard " + newest + " " + path("new")), 1, name);
    EXPECT_FALSE(fs::exists(path("new")));
    flip_bit(file, fs::file_size(file) - 1);
  }
  // Hashes do not show which checkpoint a whole file is of.
  std::string manifest = read(newest + "/manifest.json");
  const std::string codec = R"("moment_codec": "int8")";
  manifest.replace(manifest.rfind(codec), codec.size(), R"("moment_codec": "bf16")");
  std::ofstream(newest + "/manifest.json") << manifest;
  expect_refused(checkpoint("verify " + newest), 1, "is not there as bf16 moments");
}

TEST_F(CheckpointCommandTest, ExportedWeightsAreTheMasterWeights) {
  const std::string newest = trained("run");
  expect_done("export " + path("run") + " " + path("whole") + " --dtype fp32 --file-bytes 100000");
  EXPECT_TRUE(fs::exists(path("whole/model.safetensors.index.json")));
  const auto gpt2 = models::Gpt2Config::from_file(path("whole/config.json"));
  EXPECT_EQ(gpt2.to_json(), models::Gpt2Config::from_json(model_.dump(), "model").to_json());
  const ParameterReader exported = models::read_gpt2(path("whole"), gpt2);
  CheckpointReader reader(newest);
  for (const auto& tensor : reader.header("master.safetensors").tensors()) {
    std::vector<float> values(static_cast<size_t>(tensor.numel()));
    exported(tensor.name, 0, values);
    EXPECT_EQ(values, master(reader, tensor.name)) << tensor.name;
  }
  expect_done("export " + newest + " " + path("half"));
  EXPECT_THAT(read(path("half/config.json")), HasSubstr("bfloat16"));
  expect_refused(checkpoint("export " + newest + " " + path("half")), 2, "it is not empty");
}

// A rate of nothing leaves the initial values, which are the same in any tiles.
TEST_F(CheckpointCommandTest, TilesAreExportedAsTheWholeThatTheyAre) {
  config_["optimizer"]["params"]["lr"] = 0.0;
  trained("whole");
  for (const int tiles : {2, 3, 7, 256}) {
    config_["strata"]["tiles"] = tiles;
    const std::string name = std::to_string(tiles);
    trained("run" + name);
    expect_done("export --dtype fp32 " + path("run" + name) + " " + path("weights" + name));
  }
  expect_done("export --dtype fp32 " + path("whole") + " " + path("weights"));
  const std::string whole = read(path("weights/model.safetensors"));
  for (const char* name : {"2", "3", "7", "256"}) {
    EXPECT_TRUE(read(path("weights") + name + "/model.safetensors") == whole) << name;
  }
}

TEST_F(CheckpointCommandTest, ExportNamesWhatItCannotMakeAModelOf) {
  const std::string newest = trained("run");
  const std::string file = newest + "/manifest.json";
  const json good = json::parse(read(file));
  json other = good;
  other["model_config"]["n_layer"] = 3;
  std::ofstream(file) << other.dump();
  expect_refused(checkpoint("export " + newest + " " + path("new")), 2,
                 "has no 'transformer.h.2.ln_1.weight'");
  other = good;
  other["model_config"]["n_inner"] = 128;
  std::ofstream(file) << other.dump();
  expect_refused(checkpoint("export " + newest + " " + path("new")), 2,
                 "is F32 [64, 256], and the model that the checkpoint describes has [64, 128]");
  other["model_config"] = nullptr;
  std::ofstream(file) << other.dump();
  expect_refused(checkpoint("export " + newest + " " + path("new")), 2, "\"model_config\" is null");
  EXPECT_FALSE(fs::exists(path("new")));
}

// Training goes on with the same bits from a copy, and from moments that their codec held.
TEST_F(CheckpointCommandTest, ReshardKeepsTheStateThatTheCodecHolds) {
  for (const char* codec : {"bf16", "int8"}) {
    config_["strata"]["moment_codec"] = codec;
    const std::string name = codec;
    const std::string newest = trained(name);
    expect_done("reshard " + path(name) + " " + path(name + "-copy"));
    for (const char* file : {"master", "exp_avg", "exp_avg_sq"}) {
      const std::string part = "/" + std::string(file) + ".safetensors";
      EXPECT_TRUE(read(newest + part) == read(path(name + "-copy") + part)) << codec << file;
    }
    EXPECT_EQ(digest_after(path(name + "-copy")), digest_after(newest)) << codec;
    config_["strata"]["moment_codec"] = "fp32";
    expect_done("reshard --moments fp32 " + path(name) + " " + path(name + "-wide"));
    EXPECT_EQ(digest_after(path(name + "-wide")), digest_after(newest)) << codec;
    expect_refused(checkpoint("reshard " + newest + " " + path(name + "-wide")), 2,
                   "is there already");
  }
  // A narrower one holds what a wider one got from it.
  expect_done("reshard --moments bf16 " + path("bf16-wide") + " " + path("bf16-again"));
  for (const char* part : {"/exp_avg.safetensors", "/exp_avg_sq.safetensors"}) {
    EXPECT_TRUE(read(path("bf16-again") + part) == read(path("bf16-copy") + part)) << part;
  }
}

TEST_F(CheckpointCommandTest, ReshardRoundsTheSameWayEveryTime) {
  const std::string newest = trained("run");
  for (const char* name : {"one", "two"}) {
    expect_done("reshard --moments int8 " + newest + " " + path(name));
    expect_done("verify " + path(name));
  }
  EXPECT_EQ(read(path("one/manifest.json")), read(path("two/manifest.json")));
  EXPECT_EQ(CheckpointReader(path("one")).manifest().moment_codec, Codec::int8);
  EXPECT_LT(fs::file_size(path("one/exp_avg.safetensors")),
            fs::file_size(newest + "/exp_avg.safetensors") / 2);
  EXPECT_EQ(digest_after(path("one")), digest_after(path("two")));
}

TEST_F(CheckpointCommandTest, HelpSaysWhatEachCommandIsFor) {
  for (const char* command : {"", "inspect ", "verify ", "export ", "reshard "}) {
    expect_done(std::string(command) + "--help");
  }
  EXPECT_THAT(checkpoint("reshard --help").out,
              HasSubstr("not needed for training to go on with another number of ranks"));
  EXPECT_EQ(checkpoint("").exit_code, 2);
  EXPECT_EQ(checkpoint("reshard a b --moments int4").exit_code, 2);
}

}  // namespace
}  // namespace strata::testing_support
