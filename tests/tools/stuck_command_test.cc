// `strata train` on a disk that answers nothing: one sentence, and an exit code of its own.
#include <filesystem>
#include <string>

#include "tests/tools/train_command.h"

namespace strata::testing_support {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class StuckCommandTest : public TrainCommandTest {
 protected:
  StuckCommandTest() {
    config_["strata"] = {{"io_engine", "threads"}, {"watchdog", 0.5}, {"compute_threads", 1}};
  }
  // The library comes before a sanitizer's own, which would refuse.
  Result train_until_reads_hang(int reads, const std::string& more) const {
    return run(
        "ASAN_OPTIONS=verify_asan_link_order=0 STRATA_READS_BEFORE_DEATH=" + std::to_string(reads) +
        " LD_PRELOAD=" DEAD_DISK " " + strata_binary() + " " + training(more));
  }
};

TEST_F(StuckCommandTest, EndsWithTheNameOfTheReadAndLeavesNoScratch) {
  const Result result = train_until_reads_hang(40, "--steps 1000");
  EXPECT_EQ(result.exit_code, 4) << result.err;
  EXPECT_THAT(result.err,
              AllOf(HasSubstr("warning: the watchdog ends the run: for "),
                    HasSubstr("strata: for "), HasSubstr("read for update"),
                    HasSubstr("the run was ended for it"), HasSubstr("has not returned")));
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory_)) {
    EXPECT_FALSE(entry.path().filename().string().starts_with("strata")) << entry.path();
  }
}

TEST_F(StuckCommandTest, AMachineThatAnswersIsLeftAlone) {
  const Result result = train_until_reads_hang(1'000'000, "--steps 2");
  EXPECT_EQ(result.exit_code, 0) << result.err;
}

}  // namespace
}  // namespace strata::testing_support
