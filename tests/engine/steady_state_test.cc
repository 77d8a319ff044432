// In steady state a whole training step, and an evaluation, takes nothing from the system: no
// memory, mapping, thread or file, on any thread, wherever state lies and however it gets there.
#include <gtest/gtest.h>

#include <barrier>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "tests/engine/local_ranks.h"
#include "tests/engine/tiny_run.h"
#include "tests/interposition.h"

namespace strata {
namespace {

using testing_support::Acquisitions;

constexpr TierFractions kDevice = {1, 0, 0};
constexpr TierFractions kHost = {0, 1, 0};
constexpr TierFractions kNvme = {0, 0, 1};

// Steady: so many steps in a row take nothing. Usually that is all but the first; oneTBB's pools of
// tasks grow to what is ever needed at once, which may come about later.
constexpr int kQuietSteps = 20;
constexpr int kMostSteps = 200;

struct Way {
  std::string name;
  std::function<void(Config&)> edit;
  int ranks = 1;
};

void PrintTo(const Way& way, std::ostream* out) { *out << way.name; }

// Counts quiet steps in a row. oneDNN cannot run a product without a list of its arguments, which
// it allocates; how much is matmul_steady_state_test's. Here: each step as much as the one before.
class SteadyWatch {
 public:
  void step_done() {
    const Acquisitions now = testing_support::acquisitions();
    const Acquisitions taken = now - before_;
    if (taken == Acquisitions{.apart = of_products_}) {
      ++quiet_steps_;
    } else {
      std::ostringstream what;
      what << taken << testing_support::noted_origins();
      last_taken_ = what.str();
      of_products_ = taken.apart;
      quiet_steps_ = 0;
    }
    testing_support::note_origins();
    before_ = testing_support::acquisitions();
  }
  bool steady() const { return quiet_steps_ >= kQuietSteps; }
  // By the last step that was not quiet, and where.
  const std::string& last_taken() const { return last_taken_; }

 private:
  Acquisitions before_ = testing_support::acquisitions();
  std::string last_taken_;
  int64_t of_products_ = 0;
  int quiet_steps_ = 0;
};

class SteadyStateTest : public testing::TestWithParam<Way> {
 protected:
  Config config() const {
    Config config = testing_support::tiny_config();
    config.nvme_paths = {directory_.path()};
    config.sub_group_numel = 3 * kGrainNumel;
    GetParam().edit(config);
    return config;
  }

  // Until the run is steady, the first rank watching between steps.
  void train(const World& world, std::barrier<>& all_here, SteadyWatch& watch) const {
    const Config config = testing_support::for_world(this->config(), world);
    Engine::Options options;
    options.micro_batch = {config.micro_batch, testing_support::tiny_gpt2().n_positions};
    Engine engine = EngineTestAccess::make(models::gpt2(testing_support::tiny_gpt2()), config,
                                           options, {}, world);
    const auto batches = testing_support::tiny_batches(config.accumulation_steps * world.size, 1);
    const auto own = testing_support::of_rank(testing_support::views(batches), world);
    for (int step = 0; step < kMostSteps && !watch.steady(); ++step) {
      engine.train_step(own);
      engine.evaluate(own);
      all_here.arrive_and_wait();
      if (world.rank == 0) watch.step_done();
      all_here.arrive_and_wait();
    }
  }

  testing_support::TemporaryDirectory directory_;
};

TEST_P(SteadyStateTest, AStepTakesNothingFromTheSystem) {
  ASSERT_TRUE(testing_support::count_apart("libdnnl"));
  SteadyWatch watch;
  std::barrier all_here(GetParam().ranks);
  const auto failures = testing_support::failures_of_ranks(
      GetParam().ranks, [&](const World& world) { train(world, all_here, watch); });
  for (const std::string& failure : failures) EXPECT_EQ(failure, "");
  EXPECT_TRUE(watch.steady()) << watch.last_taken();
}

std::vector<Way> ways() {
  return {
      {"device", [](Config& c) { c.optimizer_state.fill(kDevice); }},
      {"host", [](Config& c) { c.optimizer_state.fill(kHost); }},
      {"nvme", [](Config& c) { c.optimizer_state.fill(kNvme); }},
      {"nvme_threads",
       [](Config& c) {
         c.optimizer_state.fill(kNvme);
         c.io_engine = IoChoice::threads;
       }},
      {"nvme_two_slots",
       [](Config& c) {
         c.optimizer_state.fill(kNvme);
         c.slots = 2;
       }},
      {"params_split_state_split_no_overlap",
       [](Config& c) {
         c.param = {0.37, 0.63, 0};
         c.optimizer_state.fill({0.1, 0.27, 0.63});
         c.overlap = false;
       }},
      {"two_ranks_on_nvme",
       [](Config& c) {
         c.param = kHost;
         c.optimizer_state.fill(kNvme);
         c.compute_threads = 1;
         c.optimizer_threads = 1;
       },
       2},
  };
}

INSTANTIATE_TEST_SUITE_P(Ways, SteadyStateTest, testing::ValuesIn(ways()),
                         [](const auto& way) { return way.param.name; });

}  // namespace
}  // namespace strata
