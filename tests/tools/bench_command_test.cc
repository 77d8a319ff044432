// `strata bench` as a person meets it: every case at a size that shows that it runs, and refusals.
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/tools/train_command.h"

namespace strata::testing_support {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class BenchCommandTest : public TrainCommandTest {
 protected:
  json smoke(const std::string& more) const { return smoke("adam", more); }
  json smoke(const std::string& bench, const std::string& more) const {
    const Result result = strata("bench " + bench + " --smoke --json " + more);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return json::parse(result.out);
  }
};

void expect_measured(const json& measured) {
  for (const char* key : {"best_ms", "median_ms", "ns_per_element", "gb_per_s"}) {
    EXPECT_GT(measured.at(key), 0.0) << key;
  }
  EXPECT_LE(measured.at("best_ms"), measured.at("median_ms"));
}

TEST_F(BenchCommandTest, EveryOptimizerRunsOnEveryIsa) {
  const json result = smoke("--optimizer all --isa all");
  EXPECT_EQ(result.at("bench"), "adam");
  const std::map<std::string, int> bytes = {
      {"adam", 28}, {"adamw", 28}, {"adagrad", 20}, {"lion", 20}, {"sgd", 20}};
  ASSERT_EQ(result.at("optimizers").size(), bytes.size());
  for (const json& optimizer : result.at("optimizers")) {
    EXPECT_EQ(optimizer.at("bytes_per_element"), bytes.at(optimizer.at("optimizer")));
    expect_measured(optimizer.at("ceiling"));
    std::set<std::string> cases;
    for (const json& one : optimizer.at("cases")) {
      expect_measured(one);
      EXPECT_GT(one.at("ratio"), 0.0);
      cases.insert(one.at("isa").get<std::string>() + " " + one.at("moments").get<std::string>());
    }
    EXPECT_EQ(cases.size(), optimizer.at("cases").size());
    EXPECT_TRUE(cases.contains("scalar ordinary"));
    EXPECT_EQ(cases.contains("scalar decayed"), optimizer.at("optimizer") != "adagrad");
  }
}

TEST_F(BenchCommandTest, DTypesCountTheirBytes) {
  const json wide = smoke("--grad-dtype fp32 --param-dtype fp32 --optimizer sgd --threads 1");
  EXPECT_EQ(wide.at("optimizers").at(0).at("bytes_per_element"), 24);
  EXPECT_EQ(wide.at("threads"), 1);
  const json mixed = smoke("--grad-dtype fp32 --param-dtype fp16 --numel 8192 --repeat 3");
  EXPECT_EQ(mixed.at("optimizers").at(0).at("bytes_per_element"), 30);
  EXPECT_EQ(mixed.at("numel"), 8192);
  EXPECT_EQ(mixed.at("optimizers").at(0).at("rounds"), 3);
}

TEST_F(BenchCommandTest, CodecsCountTheirBytes) {
  const json result = smoke("--master-codec all --moment-codec all");
  std::map<std::string, int> bytes;
  for (const json& one : result.at("optimizers")) {
    expect_measured(one.at("cases").at(0));
    bytes[one.at("master_codec").get<std::string>() + " " +
          one.at("moment_codec").get<std::string>()] = one.at("bytes_per_element").get<int>();
  }
  // 2 of the gradient; the parameter is read too where it is half of the master.
  const std::map<std::string, int> expected = {{"fp32 fp32", 28},    {"fp32 bf16", 20},
                                               {"fp32 int8", 16},    {"split16 fp32", 26},
                                               {"split16 bf16", 18}, {"split16 int8", 14}};
  EXPECT_EQ(bytes, expected);
}

TEST_F(BenchCommandTest, PrintsATable) {
  const Result result = strata("bench adam --smoke");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  for (const char* word :
       {"adamw, master fp32, moments fp32: 28 bytes", "ceiling", "ordinary", "decayed", "GB/s"}) {
    EXPECT_THAT(result.out, HasSubstr(word));
  }
}

TEST_F(BenchCommandTest, StepSetsTheFusedStepAgainstAChain) {
  for (const char* dtype : {"bf16", "fp16"}) {
    const json result = smoke("step", std::string("--threads 2 --dtype ") + dtype);
    EXPECT_EQ(result.at("bench"), "step");
    EXPECT_EQ(result.at("dtype"), dtype);
    EXPECT_EQ(result.at("threads"), 2);
    EXPECT_EQ(result.at("rounds"), 2);
    for (const auto& [side, bytes, passes] :
         {std::tuple{"fused", 32, 2u}, std::tuple{"chain", 52, 5u}}) {
      expect_measured(result.at(side));
      EXPECT_EQ(result.at(side).at("bytes_per_element"), bytes);
      EXPECT_EQ(result.at(side).at("passes").size(), passes);
      double best_ms = 0;
      for (const json& pass : result.at(side).at("passes")) {
        expect_measured(pass);
        best_ms += pass.at("best_ms").get<double>();
      }
      EXPECT_LE(best_ms, result.at(side).at("best_ms").get<double>() * 1.0001);
    }
    expect_measured(result.at("ceiling"));
    for (const char* ratio : {"speedup", "speedup_of_best", "of_ceiling"}) {
      EXPECT_GT(result.at(ratio), 0.0) << ratio;
    }
    EXPECT_EQ(result.at("bytes_ratio"), 1.625);
    EXPECT_EQ(result.at("required_speedup"), (json{0.9 * 1.625, 1.7}));
  }
  const Result text = strata("bench step --smoke --numel 8192");
  ASSERT_EQ(text.exit_code, 0) << text.err;
  for (const char* word : {"8192 elements", "ceiling", "land", "update", "widen", "norm", "scale",
                           "AdamW", "narrow", "fused against chain", "required"}) {
    EXPECT_THAT(text.out, HasSubstr(word));
  }
}

TEST_F(BenchCommandTest, HelpNamesEveryOption) {
  const std::map<std::string, std::vector<const char*>> named = {
      {"", {"adam", "io", "pipeline", "step"}},
      {"adam",
       {"--numel", "--optimizer", "--isa", "--grad-dtype", "--param-dtype", "--master-codec",
        "--moment-codec", "--threads", "--seconds", "--repeat", "--json", "--smoke"}},
      {"io",
       {"--path", "--size", "--block", "--depth", "--op", "--seconds", "--repeat", "--json",
        "--smoke"}},
      {"pipeline",
       {"--numel", "--sub-group", "--staging", "--grad", "--param", "--path", "--threads",
        "--master-codec", "--moment-codec", "--against-fp32", "--seconds", "--steps", "--json",
        "--smoke"}},
      {"step", {"--numel", "--dtype", "--threads", "--seconds", "--repeat", "--json", "--smoke"}}};
  for (const auto& [bench, words] : named) {
    const std::string help = strata("bench " + bench + " --help").out;
    for (const char* word : words) EXPECT_THAT(help, HasSubstr(word)) << bench;
  }
}

// What the smoke size's sub-groups, of 5 grains of 4096 elements and the last of 4, take in a
// codec: whole disk blocks.
int64_t smoke_bytes(const std::string& codec) {
  const std::map<std::string, int64_t> grain_bytes = {
      {"fp32", 16384}, {"split16", 8192}, {"bf16", 8192}, {"int8", 4096 + 16 * 4}};
  const auto blocks = [&](int64_t grains) {
    return (grains * grain_bytes.at(codec) + 4095) / 4096 * 4096;
  };
  return 4 * blocks(5) + blocks(4);
}

// Beside the state, gradients and parameters are 2 bytes each, where they are on nvme; parameters
// are read as well where they are half of the master.
TEST_F(BenchCommandTest, APipelineStepMovesWhatTheFormulaSays) {
  for (const bool grad : {false, true}) {
    for (const bool param : {false, true}) {
      const json measured =
          smoke("pipeline", "--master-codec all --moment-codec all --path " + directory_ +
                                (grad ? " --grad nvme" : "") + (param ? " --param nvme" : ""));
      const int64_t numel = measured.at("numel");
      EXPECT_EQ(numel, 24 * 4096);
      EXPECT_EQ(measured.at("rounds"), 2);
      EXPECT_GT(measured.at("checked_numel"), 0);
      EXPECT_LT(measured.at("peak_resident_bytes"), int64_t{2} << 30);
      std::set<std::string> cases;
      for (const json& one : measured.at("cases")) {
        const std::string master = one.at("master_codec");
        const std::string moments = one.at("moment_codec");
        cases.insert(master + " " + moments);
        const int64_t state = smoke_bytes(master) + 2 * smoke_bytes(moments);
        const bool reads_param = param && master == "split16";
        const int64_t read = state + (grad ? 2 * numel : 0) + (reads_param ? 2 * numel : 0);
        const int64_t written = state + (param ? 2 * numel : 0);
        EXPECT_EQ(one.at("read_bytes"), read) << one;
        EXPECT_EQ(one.at("written_bytes"), written) << one;
        const auto elements = static_cast<double>(numel);
        EXPECT_EQ(one.at("read_per_parameter"), static_cast<double>(read) / elements);
        EXPECT_EQ(one.at("written_per_parameter"), static_cast<double>(written) / elements);
        EXPECT_EQ(one.at("ratios").size(), 2u);
        for (const char* key : {"ratio", "of_first", "step_s", "io_s", "update_s", "gb_per_s"}) {
          EXPECT_GT(one.at(key), 0.0) << key;
        }
      }
      EXPECT_EQ(cases, (std::set<std::string>{"fp32 fp32", "fp32 bf16", "fp32 int8", "split16 fp32",
                                              "split16 bf16", "split16 int8"}));
    }
  }
}

TEST_F(BenchCommandTest, APipelineStepIsSetAgainstFp32State) {
  for (const char* codecs : {"split16 --moment-codec int8", "all"}) {
    const json measured = smoke(
        "pipeline", "--steps 1 --against-fp32 --path " + directory_ + " --master-codec " + codecs);
    ASSERT_EQ(measured.at("cases").size(), 2u);
    EXPECT_EQ(measured.at("rounds"), 1);
    const json& first = measured.at("cases").at(0);
    const json& second = measured.at("cases").at(1);
    EXPECT_EQ(first.at("master_codec"), "fp32");
    EXPECT_EQ(first.at("moment_codec"), "fp32");
    EXPECT_EQ(first.at("of_first"), 1.0);
    EXPECT_EQ(second.at("master_codec"), "split16");
    EXPECT_DOUBLE_EQ(second.at("of_first"),
                     second.at("step_s").get<double>() / first.at("step_s").get<double>());
  }
}

TEST_F(BenchCommandTest, APipelineStepIsPrinted) {
  const Result result =
      strata("bench pipeline --smoke --steps 1 --moment-codec int8 --path " + directory_);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  for (const char* words : {"AdamW over", "of ceiling", "fp32     int8        6.417      6.417",
                            "as the formula says", "peak memory"}) {
    EXPECT_THAT(result.out, HasSubstr(words));
  }
  EXPECT_THAT(result.err, HasSubstr("master fp32, moments int8: initial state"));
}

TEST_F(BenchCommandTest, RefusesWhatItCannotMeasure) {
  expect_refused(strata("bench adam --optimizer lamb"), 2, "\"adagrad\"");
  expect_refused(strata("bench adam --isa avx1024"), 2, "\"scalar\"");
  expect_refused(strata("bench adam --grad-dtype int32"), 2, "--grad-dtype");
  expect_refused(strata("bench adam --moment-codec split16"), 2, "--moment-codec");
  expect_refused(strata("bench adam --master-codec split16 --param-dtype fp16"), 2, "bf16");
  expect_refused(strata("bench adam --param-dtype fp8"), 2, "--param-dtype");
  expect_refused(strata("bench step --dtype fp32"), 2, "--dtype");
  expect_refused(strata("bench step --numel 1099511627776"), 3, "free");
  expect_refused(strata("bench adam --numel 5000"), 2, "--numel");
  expect_refused(strata("bench adam --numel 1099511627776"), 3, "free");
  EXPECT_EQ(strata("bench adam --numel -4096").exit_code, 2);
  EXPECT_EQ(strata("bench adam --seconds 0").exit_code, 2);
  EXPECT_EQ(strata("bench adam --repeat 0").exit_code, 2);
  EXPECT_EQ(strata("bench adam --threads 0").exit_code, 2);
  EXPECT_EQ(strata("bench").exit_code, 2);
  expect_refused(strata("bench pipeline --grad device"), 2, "--grad");
  expect_refused(strata("bench pipeline --master-codec bf16"), 2, "\"split16\"");
  expect_refused(strata("bench pipeline --moment-codec split16"), 2, "--moment-codec");
  expect_refused(strata("bench pipeline --numel 0.5"), 2, "--numel");
  expect_refused(strata("bench pipeline --numel 1e9"), 3, "--sub-group");
  expect_refused(strata("bench pipeline --numel 1e12 --grad nvme --param nvme"), 3, "--path");
  EXPECT_EQ(strata("bench pipeline --staging 1").exit_code, 2);
  EXPECT_EQ(strata("bench pipeline --path /no/such/place").exit_code, 2);
}

class BenchIoCommandTest : public TrainCommandTest {
 protected:
  void SetUp() override {
    static const bool forbidden =
        bench("--smoke --op read").err.find("io_uring is not available") != std::string::npos;
    if (forbidden) GTEST_SKIP() << "io_uring is forbidden here";
  }
  Result bench(const std::string& more) const {
    return strata("bench io --path " + path("") + " " + more);
  }
};

TEST_F(BenchIoCommandTest, EveryLoadRunsAtEveryBlockSize) {
  const Result run = bench("--smoke --json --block 64KiB 1MiB --depth 4");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const json result = json::parse(run.out);
  EXPECT_EQ(result.at("bench"), "io");
  EXPECT_EQ(result.at("depth"), 4);
  std::set<std::string> cases;
  for (const json& one : result.at("cases")) {
    cases.insert(one.at("op").get<std::string>() + " " + one.at("block_bytes").dump());
    EXPECT_EQ(one.at("rounds"), 2);
    EXPECT_EQ(one.at("ceiling"), result.at("fio").is_null() ? "liburing" : "fio");
    EXPECT_EQ(one.at("ratio"), one.at("of").at(one.at("ceiling")));
    for (const char* who : {"strata", "unregistered", "liburing"}) {
      EXPECT_GT(one.at("gb_per_s").at(who), 0.0) << who;
      EXPECT_GE(one.at("best_gb_per_s").at(who), one.at("gb_per_s").at(who)) << who;
      EXPECT_EQ(one.at("of").contains(who), who != std::string("strata"));
    }
    for (const auto& [who, ratio] : one.at("of").items()) EXPECT_GT(ratio, 0.0) << who;
  }
  EXPECT_EQ(cases, (std::set<std::string>{"read 65536", "read 1048576", "write 65536",
                                          "write 1048576", "mixed 65536", "mixed 1048576"}));
}

TEST_F(BenchIoCommandTest, TellsItsRoundsAndLeavesNoFile) {
  const std::string disk = path("disk");
  std::filesystem::create_directory(disk);
  const Result run =
      strata("bench io --smoke --op mixed --depth 1 --repeat 3 --size 3MiB --path " + disk);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.err, HasSubstr("mixed of 1024 KiB, round 3:"));
  // The size is rounded up to as many blocks for reads as for writes.
  for (const char* word : {"4 MiB in", "depth 1;", "of liburing", "of fio", "mixed"}) {
    EXPECT_THAT(run.out, HasSubstr(word));
  }
  EXPECT_TRUE(std::filesystem::is_empty(disk));
}

TEST_F(BenchIoCommandTest, RunsWithoutFio) {
  const Result run = this->run("PATH= " + strata_binary() + " bench io --smoke --json --op read" +
                               " --path " + path(""));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const json result = json::parse(run.out);
  EXPECT_TRUE(result.at("fio").is_null());
  EXPECT_EQ(result.at("cases").at(0).at("ceiling"), "liburing");
}

TEST_F(BenchIoCommandTest, RefusesWhatItCannotMeasure) {
  expect_refused(bench("--op delete"), 2, "\"mixed\"");
  expect_refused(bench("--block 3MiB"), 2, "--block");
  expect_refused(bench("--block 512"), 2, "--block");
  expect_refused(bench("--block 64MiB"), 2, "--depth 32");
  expect_refused(strata("bench io --path /no/such"), 2, "/no/such");
  expect_refused(bench("--size 1EiB"), 1, "free");
  EXPECT_EQ(bench("--depth 0").exit_code, 2);
  EXPECT_EQ(bench("--seconds 0").exit_code, 2);
  EXPECT_EQ(bench("--size many").exit_code, 2);
}

TEST_F(BenchCommandTest, LayersRunBesideTheSquareProduct) {
  const json result = smoke("layers", "--device host --dtype fp32");
  EXPECT_EQ(result.at("dtype"), "fp32");
  const json& operations = result.at("operations");
  EXPECT_NEAR(operations.at(0).at("of_peak").get<double>(), 1.0, 1e-9);
  std::set<std::string> names;
  for (const json& one : operations) {
    EXPECT_GT(one.at("median_ms"), 0.0);
    EXPECT_GT(one.at("gb_per_s"), 0.0);
    names.insert(one.at("operation"));
  }
  EXPECT_EQ(names.size(), operations.size());
  EXPECT_TRUE(names.contains("attention backward") && names.contains("cross-entropy"));
}

TEST_F(BenchCommandTest, LayersRefuseWhatIsNotThere) {
  EXPECT_THAT(strata("bench layers --smoke --device tpu").err, HasSubstr("say \"auto\""));
  EXPECT_THAT(strata("bench layers --channels 100 --heads 3").err, HasSubstr("multiple"));
}

}  // namespace
}  // namespace strata::testing_support
