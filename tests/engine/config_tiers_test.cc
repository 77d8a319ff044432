// Keys that decide where state lives and how it moves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "strata/grain.h"
#include "tests/engine/config_text.h"

namespace strata {
namespace {

using testing::ElementsAre;
using testing_support::case_name;
using testing_support::ConfigRefuses;
using testing_support::own;
using testing_support::parse;
using testing_support::Refusal;
using testing_support::with_batch;
using testing_support::zero;

INSTANTIATE_TEST_SUITE_P(
    Tiers, ConfigRefuses,
    testing::Values(
        Refusal{"ParametersElsewhereWithStage2",
                zero(R"("stage": 2, "offload_param": {"device": "cpu"})"),
                "ds.json: \"zero_optimization.stage\" is 2, which keeps all parameters on the "
                "device, and parameters are to live elsewhere: use stage 3, or leave "
                "\"offload_param\" and \"strata.placement.param\" out"},
        Refusal{"TwoNamesOfOneBound",
                zero(R"("stage3_prefetch_bucket_size": 1e6, "prefetch_bucket_size": 1e7)"),
                "ds.json: \"zero_optimization.stage3_prefetch_bucket_size\" is 1000000 but "
                "\"zero_optimization.prefetch_bucket_size\" is 10000000, and both mean the same: "
                "keep one of them"},
        Refusal{"Stage4", zero(R"("stage": 4)"),
                "ds.json: \"zero_optimization.stage\" must be an integer from 0 to 3, found 4"},
        Refusal{"ParametersOnNvmeWithoutPath", zero(R"("offload_param": {"device": "nvme"})"),
                "ds.json: \"zero_optimization.offload_optimizer.nvme_path\" is missing: parameters "
                "are to live on nvme, so name a directory for its files"},
        Refusal{"TwoPlacesForFiles",
                zero(R"("offload_optimizer": {"device": "nvme", "nvme_path": "/a"},
                        "offload_param": {"device": "nvme", "nvme_path": "/b"})"),
                "ds.json: \"zero_optimization.offload_param.nvme_path\" and "
                "\"zero_optimization.offload_optimizer.nvme_path\" differ, and all files are in "
                "one list of directories: give both the same, or one of them"},
        Refusal{"UnknownDevice", zero(R"("offload_optimizer": {"device": "disk"})"),
                "ds.json: \"zero_optimization.offload_optimizer.device\" must be \"none\" or "
                "\"cpu\" or \"nvme\", found \"disk\""},
        Refusal{"NvmeWithoutPath", zero(R"("offload_optimizer": {"device": "nvme"})"),
                "ds.json: \"zero_optimization.offload_optimizer.nvme_path\" is missing: optimizer "
                "state is to live on nvme, so name a directory for its files"},
        Refusal{"PlacementOnNvmeWithoutPath",
                own(R"("placement": {"exp_avg": {"device": 1}, "exp_avg_sq": {"device": 1},
                                    "master": {"device": 1}, "param": {"nvme": 1}})"),
                "ds.json: \"zero_optimization.offload_optimizer.nvme_path\" is missing: parameters "
                "are to live on nvme, so name a directory for its files"},
        Refusal{"OnePathTwice", zero(R"("offload_optimizer": {"nvme_path": ["/a", "/b", "/a"]})"),
                "ds.json: \"zero_optimization.offload_optimizer.nvme_path\" lists \"/a\" twice: "
                "name each directory once"},
        Refusal{"NoPathInTheList", zero(R"("offload_optimizer": {"nvme_path": []})"),
                "ds.json: \"zero_optimization.offload_optimizer.nvme_path\" must be a directory's "
                "path or a list of them, found []"},
        Refusal{"WeightOfNothing", own(R"("nvme_weights": [1, 0])"),
                "ds.json: \"strata.nvme_weights\" must be \"auto\" or a list of integers from 1 to "
                "1024, found [1,0]"},
        Refusal{"WeightsWithoutTheirPaths",
                R"({"train_batch_size": 1, "strata": {"nvme_weights": [1, 2, 3]},
                    "zero_optimization": {"offload_optimizer": {"device": "nvme",
                                                                "nvme_path": ["/a", "/b"]}}})",
                "ds.json: \"strata.nvme_weights\" has 3 and "
                "\"zero_optimization.offload_optimizer.nvme_path\" 2 entries: give each directory "
                "one weight"},
        Refusal{"RatioOutOfRange", zero(R"("offload_optimizer": {"ratio": 1.5})"),
                "ds.json: \"zero_optimization.offload_optimizer.ratio\" must be a number of at "
                "least 0 and at most 1, found 1.5"},
        Refusal{"RatioOnNvme",
                zero(R"("offload_optimizer": {"device": "nvme", "nvme_path": "/n", "ratio": 0.5})"),
                "ds.json: \"zero_optimization.offload_optimizer.ratio\" splits the update between "
                "device and host: with \"device\": \"nvme\" leave it out and use "
                "\"strata.placement\""},
        Refusal{"PlacementThatDoesNotAddUp", own(R"("placement": {"master": {"host": 0.5}})"),
                "ds.json: \"strata.placement.master\": device 0 + host 0.5 + nvme 0 = 0.5: the "
                "parts must add up to 1"},
        Refusal{"UnequalDeviceParts", own(R"("placement": {"exp_avg": {"host": 1}})"),
                "ds.json: \"strata.placement\": the device holds 1 of master but 0 of exp_avg, and "
                "an update needs them in one place: make the device parts of master, exp_avg and "
                "exp_avg_sq equal"},
        Refusal{"BadSize", own(R"("device_memory": "64 mebibytes")"),
                "ds.json: \"strata.device_memory\" must be a size in bytes, as an integer or a "
                "string like \"64MiB\" or \"1.5GB\", found \"64 mebibytes\""},
        Refusal{
            "NoStagingBuffer", own(R"("staging_buffers": 0)"),
            "ds.json: \"strata.staging_buffers\" must be \"auto\" or an integer from 1 to 1024, "
            "found 0"},
        Refusal{
            "SpeculationWithOneSlot", own(R"("speculate": "always")"),
            "ds.json: \"strata.speculate\" is \"always\", which takes a second slot to write to "
            "while the first still counts: set \"strata.slots\" to 2 and leave "
            "\"strata.overlap\" on"},
        Refusal{"PinningWithoutABudget", own(R"("pin_state": "always")"),
                "ds.json: \"strata.pin_state\" is \"always\" without a budget to fill: give "
                "\"strata.host_memory\""},
        Refusal{"BlockSizeOffTheGrid", with_batch(R"("aio": {"block_size": 1000})"),
                "ds.json: \"aio.block_size\" must be a multiple of 4096 bytes from 4096 to "
                "\"1GiB\", found 1000"},
        Refusal{
            "ThreadsTwice", with_batch(R"("aio": {"thread_count": 2, "intra_op_parallelism": 4})"),
            "ds.json: \"aio.thread_count\" is 2 but \"aio.intra_op_parallelism\" is 4, and both "
            "mean the same: keep one of them"},
        Refusal{"Pipeline", with_batch(R"("pipeline": {"stages": 2})"),
                "ds.json: \"pipeline\" cannot be honoured: pipeline parallelism is not there; ZeRO "
                "shards the layers instead, so remove it"},
        Refusal{"MixtureOfExperts", with_batch(R"("moe": {"enabled": true})"),
                "ds.json: \"moe\" cannot be honoured: mixture of experts is not there yet; remove "
                "it"},
        Refusal{"EnabledDeepInside", with_batch(R"("compression_training": {"weight_quantization":
                                {"shared_parameters": {"enabled": true}}})"),
                "ds.json: \"compression_training\" cannot be honoured: compression during training "
                "is not there; remove it"}),
    case_name);

TEST(Config, SubGroupsAreWholeGrains) {
  EXPECT_EQ(parse(zero(R"("sub_group_size": 1)")).sub_group_numel, kGrainNumel);
  EXPECT_EQ(parse(zero(R"("sub_group_size": 12287)")).sub_group_numel, 2 * kGrainNumel);
}

TEST(Config, OffloadKeysDecideThePlacement) {
  const Config split = parse(zero(R"("offload_optimizer": {"device": "cpu", "ratio": 0.3},
                                     "offload_param": {"device": "cpu"})"));
  EXPECT_EQ(split.param.host, 1);
  for (const TierFractions& parts : split.optimizer_state) {
    EXPECT_EQ(parts.host, 0.3);
    EXPECT_EQ(parts.device, 0.7);
  }
  const Config nvme = parse(zero(R"("offload_optimizer": {"device": "nvme", "nvme_path": "/n"})"));
  for (const TierFractions& parts : nvme.optimizer_state) EXPECT_EQ(parts.nvme, 1);
  EXPECT_THAT(nvme.nvme_paths, ElementsAre("/n"));
}

TEST(Config, SeveralNvmePathsHaveWeightsOrAreMeasured) {
  const std::string paths = R"("zero_optimization": {"offload_optimizer": {
      "device": "nvme", "nvme_path": ["/a", "/b"]}})";
  const Config weighed =
      parse(R"({"train_batch_size": 1, "strata": {"nvme_weights": [3, 1]}, )" + paths + "}");
  EXPECT_THAT(weighed.nvme_paths, ElementsAre("/a", "/b"));
  EXPECT_THAT(weighed.nvme_weights, ElementsAre(3, 1));
  for (const std::string more : {"", R"("strata": {"nvme_weights": "auto"}, )"}) {
    const Config measured = parse(R"({"train_batch_size": 1, )" + more + paths + "}");
    EXPECT_THAT(measured.nvme_paths, ElementsAre("/a", "/b"));
    EXPECT_TRUE(measured.nvme_weights.empty());
  }
}

TEST(Config, StratasPlacementOverridesKindByKind) {
  const Config config = parse(R"({"train_batch_size": 1,
    "zero_optimization": {"offload_optimizer": {"device": "cpu", "nvme_path": ["/n"]}},
    "strata": {"placement": {"exp_avg": {"host": 0.63, "nvme": 0.37},
                             "param": {"device": 0.5, "host": 0.5}}}})");
  EXPECT_EQ(config.param.device, 0.5);
  EXPECT_EQ(config.optimizer_state[0].host, 1);
  EXPECT_EQ(config.optimizer_state[1].nvme, 0.37);
  EXPECT_EQ(config.optimizer_state[2].host, 1);
  EXPECT_THAT(config.nvme_paths, ElementsAre("/n"));
}

// A budget given beside device "nvme" is filled with state, unless a person has placed it, or wants
// it all on disk.
TEST(Config, StateIsPinnedWhereABudgetIsGivenForIt) {
  const auto pinning = [](const std::string& more) {
    return parse(R"({"train_batch_size": 1, "zero_optimization": {"offload_optimizer":
                     {"device": "nvme", "nvme_path": "/n"}}, "strata": {)" +
                 more + "}}")
        .pin_state;
  };
  EXPECT_EQ(pinning(""), PinChoice::never);
  EXPECT_EQ(pinning(R"("host_memory": "1GiB")"), PinChoice::automatic);
  EXPECT_EQ(pinning(R"("host_memory": "1GiB", "placement": {"param": {"host": 1}})"),
            PinChoice::automatic);
  EXPECT_EQ(pinning(R"("host_memory": "1GiB", "placement": {"master": {"nvme": 1}})"),
            PinChoice::never);
  EXPECT_EQ(pinning(R"("host_memory": "1GiB", "slots": 2)"), PinChoice::never);
  EXPECT_EQ(pinning(R"("host_memory": "1GiB", "pin_state": "never")"), PinChoice::never);
  EXPECT_EQ(pinning(R"("host_memory": "1GiB", "slots": 2, "pin_state": "always")"),
            PinChoice::always);
  EXPECT_EQ(parse(own(R"("host_memory": "1GiB")")).pin_state, PinChoice::never)
      << "nothing is on nvme";
}

}  // namespace
}  // namespace strata
