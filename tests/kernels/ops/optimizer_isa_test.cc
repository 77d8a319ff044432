// The instruction set that runs is the one asked for, or an error that says what there is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <utility>

#include "strata/error.h"
#include "tests/environment_variable.h"
#include "tests/kernels/ops/optimizer_testing.h"

namespace strata::ops {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

// Sets STRATA_FORCE_ISA until destroyed.
class IsaInEnvironment {
 public:
  explicit IsaInEnvironment(const std::string& value)
      : variable_(std::in_place, kName, value.c_str()) {}
  ~IsaInEnvironment() {
    variable_.reset();
    force_isa({});
  }

 private:
  static constexpr const char* kName = "STRATA_FORCE_ISA";
  std::optional<EnvironmentVariable> variable_;
};

TEST(OptimizerIsa, ScalarIsEverywhere) { EXPECT_THAT(available_isas(), Contains("scalar")); }

TEST(OptimizerIsa, TheForcedOneRuns) {
  for (std::string_view isa : available_isas()) {
    const ForcedIsa forced(isa);
    EXPECT_EQ(active_isa(), isa);
  }
}

TEST(OptimizerIsa, EnvironmentForcesOne) {
  for (std::string_view isa : available_isas()) {
    const IsaInEnvironment environment{std::string(isa)};
    force_isa({});
    EXPECT_EQ(active_isa(), isa);
  }
}

TEST(OptimizerIsa, BestRunsWhenNothingIsForced) {
  const IsaInEnvironment environment("");
  force_isa({});
  EXPECT_EQ(active_isa(), available_isas().front());
}

TEST(OptimizerIsa, UnknownOneIsRefusedNamingWhatThereIs) {
  const std::string before(active_isa());
  try {
    force_isa("avx1024");
    FAIL() << "accepted";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("STRATA_FORCE_ISA"), HasSubstr("\"avx1024\""),
                                    HasSubstr("scalar")));
    for (std::string_view isa : available_isas()) {
      EXPECT_THAT(error.what(), HasSubstr(std::string(isa)));
    }
  }
  EXPECT_EQ(active_isa(), before);
  const IsaInEnvironment environment("avx1024");
  EXPECT_THROW(force_isa({}), ConfigError);
}

}  // namespace
}  // namespace strata::ops
