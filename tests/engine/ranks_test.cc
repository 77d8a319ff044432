// ZeRO-3 over ranks as threads: at each world size one training state, whatever the placement, the
// overlap, the bucket and the delays; what one rank cannot do ends all of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "strata/error.h"
#include "tests/engine/local_ranks.h"
#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_support::failures_of_ranks;
using testing_support::for_world;
using testing_support::of_rank;
using testing_support::run_tiny;
using testing_support::run_tiny_on_ranks;
using testing_support::RunOutcome;
using testing_support::TemporaryDirectory;
using testing_support::tiny_batches;
using testing_support::tiny_config;
using testing_support::tiny_gpt2;
using testing_support::views;

constexpr int kSteps = 3;

Config ranks_config(const std::string& directory) {
  Config config = tiny_config();
  config.nvme_paths = {directory};
  config.compute_threads = config.optimizer_threads = 1;
  config.comm_timeout_s = 60;
  return config;
}

RunOutcome run_ranks(int size, const Config& config, const engine::Disturbance& disturbance = {}) {
  return run_tiny_on_ranks(size, config, kSteps, disturbance);
}

struct Way {
  const char* name;
  std::function<void(Config&)> edit;
};

std::vector<Way> ways() {
  return {
      {"state_on_host",
       [](Config& c) {
         c.optimizer_state.fill({0, 1, 0});
       }},
      {"state_on_nvme",
       [](Config& c) {
         c.optimizer_state.fill({0, 0, 1});
       }},
      {"all_split",
       [](Config& c) {
         c.param = {0.5, 0.5, 0};
         c.optimizer_state.fill({0.2, 0.37, 0.43});
         c.sub_group_numel = 2 * kGrainNumel;
       }},
      {"params_on_host",
       [](Config& c) {
         c.param = {0, 1, 0};
         c.optimizer_state.fill({0, 0, 1});
       }},
      {"no_overlap",
       [](Config& c) {
         c.overlap = false;
         c.optimizer_state.fill({0, 0, 1});
       }},
      {"smallest_bucket", [](Config& c) { c.reduce_bucket_numel = 1; }},
      {"bucket_by_width", [](Config& c) { c.reduce_bucket_numel = Config::kAutoReduceBucket; }},
      {"two_slots",
       [](Config& c) {
         c.optimizer_state.fill({0, 0, 1});
         c.slots = 2;
       }},
      {"always_recompute", [](Config& c) { c.recompute = RecomputeChoice::always; }},
  };
}

class WorldSizes : public testing::TestWithParam<int> {
 protected:
  Config config() const { return ranks_config(directory_.path()); }
  TemporaryDirectory directory_;
};

INSTANTIATE_TEST_SUITE_P(UpToFour, WorldSizes, testing::Values(1, 2, 3, 4));

TEST_P(WorldSizes, HaveOneTrainingStateHoweverTheyTrain) {
  for (const bool accumulate : {true, false}) {
    Config base = config();
    if (!accumulate) base.accumulation_steps = 1;
    const RunOutcome reference = run_ranks(GetParam(), base);
    for (const Way& way : ways()) {
      Config changed = base;
      way.edit(changed);
      const RunOutcome outcome = run_ranks(GetParam(), changed);
      EXPECT_EQ(outcome.digest, reference.digest) << way.name;
      EXPECT_EQ(outcome.losses, reference.losses) << way.name;
    }
  }
}

TEST_P(WorldSizes, DelaysChangeNoBit) {
  Config split = config();
  split.param = {0.5, 0.5, 0};
  split.optimizer_state.fill({0, 0.37, 0.63});
  split.sub_group_numel = 3 * kGrainNumel;
  const std::string digest = run_ranks(GetParam(), split).digest;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    engine::Disturbance disturbance;
    disturbance.delay_seed = 1000 * seed;
    EXPECT_EQ(run_ranks(GetParam(), split, disturbance).digest, digest) << "seed " << seed;
  }
}

// Initial values, parameters as they are read and written, validation and scores know no ranks.
TEST_P(WorldSizes, ShowTheSameModel) {
  const std::string name = "transformer.h.0.mlp.c_fc.weight";
  struct Seen {
    std::vector<float> start, written, scores;
    double loss = 0;
    std::string digest;
    bool operator==(const Seen&) const = default;
  };
  const Config split = [&] {
    Config c = config();
    c.param = {0.5, 0.5, 0};
    c.optimizer_state.fill({0, 0.37, 0.63});
    return c;
  }();
  const auto look = [&](const World& world) {
    Engine::Options options;
    options.micro_batch = {split.micro_batch, tiny_gpt2().n_positions};
    Engine engine = EngineTestAccess::make(models::gpt2(tiny_gpt2()), for_world(split, world),
                                           options, {}, world);
    Seen seen;
    seen.start = engine.read_parameter(name, StateKind::master);
    std::vector<float> values(seen.start.size());
    for (size_t i = 0; i < values.size(); ++i) values[i] = 0.001f * static_cast<float>(i % 97);
    engine.write_parameter(name, values);
    seen.written = engine.read_parameter(name, StateKind::master);
    EXPECT_EQ(seen.written, values);
    const auto batches = tiny_batches(12, 9);
    seen.loss = engine.evaluate(of_rank(views(batches), world));
    const std::vector<int32_t> tokens = {3, 1, 4, 1, 5};
    seen.scores = engine.next_token_scores(tokens);
    seen.digest = engine.digest();
    return seen;
  };
  const Seen alone = look({});
  EXPECT_EQ(alone.scores.size(), static_cast<size_t>(tiny_gpt2().vocab_size));
  std::vector<Seen> seen(static_cast<size_t>(GetParam()));
  const auto failures = failures_of_ranks(
      GetParam(), [&](const World& world) { seen[static_cast<size_t>(world.rank)] = look(world); });
  for (size_t rank = 0; rank < seen.size(); ++rank) {
    EXPECT_EQ(failures[rank], "");
    EXPECT_NEAR(seen[rank].loss, alone.loss, 1e-12);
    seen[rank].loss = alone.loss;  // added up in another order
    EXPECT_EQ(seen[rank], alone) << "rank " << rank;
  }
}

TEST_P(WorldSizes, DivideTheTrainingState) {
  std::vector<PlanSummary> plans(static_cast<size_t>(GetParam()));
  const PlanSummary alone = [&] {
    Engine::Options options;
    options.micro_batch = {2, tiny_gpt2().n_positions};
    return EngineTestAccess::make(models::gpt2(tiny_gpt2()), config(), options, {}).plan();
  }();
  failures_of_ranks(GetParam(), [&](const World& world) {
    Engine::Options options;
    options.micro_batch = {2, tiny_gpt2().n_positions};
    plans[static_cast<size_t>(world.rank)] =
        EngineTestAccess::make(models::gpt2(tiny_gpt2()), for_world(config(), world), options, {},
                               world)
            .plan();
  });
  // Each unit is padded to a grain a rank at most: 14 bytes an element of 4 units.
  const uint64_t padding = 4 * 18 * kGrainNumel;
  const auto ranks = static_cast<uint64_t>(GetParam());
  for (const PlanSummary& plan : plans) {
    EXPECT_EQ(plan.training_state_bytes, plans[0].training_state_bytes);
    EXPECT_GE(plan.training_state_bytes * ranks, alone.training_state_bytes);
    EXPECT_LE(plan.training_state_bytes, alone.training_state_bytes / ranks + padding);
  }
}

// A reason to stop on one rank reaches all, with the step under way.
TEST(StoppingRanks, StopTogether) {
  const TemporaryDirectory directory;
  const auto failures = failures_of_ranks(3, [&](const World& world) {
    const Config config = for_world(ranks_config(directory.path()), world);
    std::atomic<int> stop = 0;
    Engine::Options options;
    options.micro_batch = {config.micro_batch, tiny_gpt2().n_positions};
    options.stop = &stop;
    Engine engine = EngineTestAccess::make(models::gpt2(tiny_gpt2()), config, options, {}, world);
    const auto batches = tiny_batches(config.accumulation_steps, 5);
    EXPECT_EQ(engine.train_step(views(batches)).stop, 0);
    stop = world.rank == 2 ? 7 : world.rank;
    EXPECT_EQ(engine.train_step(views(batches)).stop, 7);
  });
  for (const std::string& failure : failures) EXPECT_EQ(failure, "");
}

class FailingRanks : public testing::Test {
 protected:
  // Trains on three ranks; `misbehave` may do something else on rank 1 before its second step.
  std::vector<std::string> run(const std::function<void(Engine&)>& misbehave) const {
    return failures_of_ranks(3, [&](const World& world) {
      const Config config = for_world(ranks_config(directory_.path()), world);
      Engine::Options options;
      options.micro_batch = {config.micro_batch, tiny_gpt2().n_positions};
      Engine engine = EngineTestAccess::make(models::gpt2(tiny_gpt2()), config, options, {}, world);
      const auto batches = tiny_batches(config.accumulation_steps, 5);
      engine.train_step(views(batches));
      if (world.rank == 1) misbehave(engine);
      engine.train_step(views(batches));
    });
  }
  TemporaryDirectory directory_;
};

TEST_F(FailingRanks, EndTheOthersWithWhatTheyFailedOf) {
  const auto failures = run([](Engine& engine) {
    const auto too_many = tiny_batches(7, 5);
    engine.train_step(views(too_many));
  });
  EXPECT_THAT(failures[1], HasSubstr("takes 2 micro-batches and was given 7"));
  for (const size_t rank : {0u, 2u}) {
    EXPECT_THAT(failures[rank], AllOf(HasSubstr("rank 1"), HasSubstr("was given 7"))) << rank;
  }
}

TEST_F(FailingRanks, EndTheOthersWhenTheyLeave) {
  const auto failures = run([](Engine&) { throw Error("no more of this"); });
  EXPECT_EQ(failures[1], "no more of this");
  for (const size_t rank : {0u, 2u}) EXPECT_THAT(failures[rank], HasSubstr("rank 1")) << rank;
}

struct Difference {
  const char* name;
  std::function<void(models::Gpt2Config&, Config&, Engine::Options&)> edit;
};

// What no shape of a parameter or a buffer would tell.
TEST_F(FailingRanks, AreRefusedAtStartWhenTheyDisagree) {
  using Gpt2 = models::Gpt2Config;
  using Options = Engine::Options;
  const std::vector<Difference> differences = {
      {"lr", [](Gpt2&, Config& c, Options&) { c.optimizer.lr = 0.5; }},
      {"loss_scale", [](Gpt2&, Config& c, Options&) { c.loss_scale.window = 5; }},
      {"schedule", [](Gpt2&, Config& c, Options&) { c.schedule.kind = ScheduleKind::warmup; }},
      {"group",
       [](Gpt2&, Config& c, Options&) {
         c.parameter_groups = {{{"*.bias"}, 0.5, 1}};
       }},
      {"seed", [](Gpt2&, Config& c, Options&) { c.seed = 8; }},
      {"n_head", [](Gpt2& g, Config&, Options&) { g.n_head = 2; }},
      {"dropout", [](Gpt2& g, Config&, Options&) { g.attn_pdrop = 1e-4; }},
      {"epsilon", [](Gpt2& g, Config&, Options&) { g.layer_norm_epsilon = 1e-6f; }},
      {"data", [](Gpt2&, Config&, Options& o) { o.data_hash = 5; }},
      {"slots", [](Gpt2&, Config& c, Options&) { c.slots = 2; }},
      {"batch", [](Gpt2&, Config&, Options& o) { o.micro_batch.batch = 1; }},
  };
  for (const Difference& difference : differences) {
    const auto failures = failures_of_ranks(2, [&](const World& world) {
      Config config = for_world(ranks_config(directory_.path()), world);
      config.optimizer_state.fill({0, 0, 1});
      models::Gpt2Config gpt2 = tiny_gpt2();
      Engine::Options options;
      options.micro_batch = {config.micro_batch, gpt2.n_positions};
      if (world.rank == 1) difference.edit(gpt2, config, options);
      EngineTestAccess::make(models::gpt2(gpt2), config, options, {}, world);
    });
    for (const std::string& failure : failures) {
      EXPECT_THAT(failure, HasSubstr("rank 1 has another model, configuration or data"))
          << difference.name;
    }
  }
}

TEST_F(FailingRanks, AreRefusedWhenTheBatchWasDividedAmongOthers) {
  const auto failures = failures_of_ranks(2, [&](const World& world) {
    Engine::Options options;
    options.micro_batch = {2, tiny_gpt2().n_positions};
    const Config config = ranks_config(directory_.path());
    EngineTestAccess::make(models::gpt2(tiny_gpt2()), config, options, {}, world);
  });
  for (const std::string& failure : failures) {
    EXPECT_THAT(failure, HasSubstr("divides its batch among 1 ranks and there are 2"));
  }
}

TEST_F(FailingRanks, EndTheOthersAtStartToo) {
  const auto failures = failures_of_ranks(2, [&](const World& world) {
    Config config = for_world(ranks_config(directory_.path()), world);
    if (world.rank == 1) config.device_memory = 4096;
    Engine::Options options;
    options.micro_batch = {config.micro_batch, tiny_gpt2().n_positions};
    EngineTestAccess::make(models::gpt2(tiny_gpt2()), config, options, {}, world);
  });
  EXPECT_THAT(failures[1], HasSubstr("device tier needs"));
  EXPECT_THAT(failures[0], AllOf(HasSubstr("rank 1"), HasSubstr("device tier needs")));
}

}  // namespace
}  // namespace strata
