// Dropout draws by seed, step, micro-batch, layer and place alone: P1 and P2 hold with it, and
// nothing but training knows it.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/ops/optimizer_ops.h"
#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using models::Gpt2Config;
using testing_support::run_tiny;
using testing_support::run_tiny_on_ranks;
using testing_support::RunOutcome;
using testing_support::TemporaryDirectory;
using testing_support::tiny_batches;
using testing_support::tiny_config;
using testing_support::tiny_gpt2;
using testing_support::views;

constexpr int kSteps = 3;

Gpt2Config dropping_gpt2() {
  Gpt2Config gpt2 = tiny_gpt2();
  gpt2.embd_pdrop = 0.1;
  gpt2.resid_pdrop = 0.2;
  gpt2.attn_pdrop = 0.3;
  return gpt2;
}

struct Variant {
  const char* name;
  std::function<void(Config&)> edit;
};

std::vector<Variant> variants() {
  return {
      {"state_split",
       [](Config& c) {
         c.param = {0.37, 0.63, 0};
         c.optimizer_state.fill({0.2, 0.37, 0.43});
         c.sub_group_numel = 3 * kGrainNumel;
       }},
      {"two_slots",
       [](Config& c) {
         c.param = {0, 1, 0};
         c.optimizer_state.fill({0, 0, 1});
         c.slots = 2;
         c.sub_group_numel = 2 * kGrainNumel;
       }},
      {"always_recompute", [](Config& c) { c.recompute = RecomputeChoice::always; }},
      {"no_overlap",
       [](Config& c) {
         c.overlap = false;
         c.recompute = RecomputeChoice::always;
         c.optimizer_state.fill({0, 0, 1});
       }},
      {"other_optimizer_threads",
       [](Config& c) {
         c.optimizer_threads = 1;
         c.optimizer_state.fill({0.37, 0.63, 0});
       }},
  };
}

class Dropout : public testing::Test {
 protected:
  Config config() const {
    Config config = tiny_config();
    config.nvme_paths = {directory_.path()};
    return config;
  }
  static RunOutcome run(const Config& config, const engine::Disturbance& disturbance = {},
                        const Gpt2Config& gpt2 = dropping_gpt2()) {
    return run_tiny(config, kSteps, disturbance, {}, gpt2);
  }
  TemporaryDirectory directory_;
};

TEST_F(Dropout, LeavesTheSameBitsHoweverItTrains) {
  for (const DType dtype : {DType::bf16, DType::fp32}) {
    Config base = config();
    base.dtype = dtype;
    const RunOutcome reference = run(base);
    for (const Variant& variant : variants()) {
      Config varied = base;
      variant.edit(varied);
      const RunOutcome outcome = run(varied);
      EXPECT_EQ(outcome.digest, reference.digest) << variant.name;
      EXPECT_EQ(outcome.losses, reference.losses) << variant.name;
    }
  }
}

TEST_F(Dropout, LeavesTheSameBitsOnEveryInstructionSetAndUnderDelays) {
  const std::string digest = run(config()).digest;
  for (const std::string_view isa : ops::available_isas()) {
    ops::force_isa(isa);
    EXPECT_EQ(run(config()).digest, digest) << isa;
  }
  ops::force_isa("");
  Config split = config();
  split.optimizer_state.fill({0, 0.37, 0.63});
  split.recompute = RecomputeChoice::always;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    engine::Disturbance disturbance;
    disturbance.delay_seed = seed;
    EXPECT_EQ(run(split, disturbance).digest, digest) << seed;
  }
}

TEST_F(Dropout, OfEachKindCounts) {
  const RunOutcome plain = run(config(), {}, tiny_gpt2());
  for (double Gpt2Config::*probability :
       {&Gpt2Config::embd_pdrop, &Gpt2Config::resid_pdrop, &Gpt2Config::attn_pdrop}) {
    Gpt2Config gpt2 = tiny_gpt2();
    gpt2.*probability = 0.1;
    const RunOutcome outcome = run(config(), {}, gpt2);
    EXPECT_NE(outcome.digest, plain.digest);
    EXPECT_NE(outcome.losses[0], plain.losses[0]);
  }
}

// Every world's ranks agree on one state however they train, as one rank does.
TEST_F(Dropout, HasOneStateAtEachWorldSize) {
  for (const int size : {2, 3}) {
    Config base = config();
    base.compute_threads = base.optimizer_threads = 1;
    const auto run_ranks = [&](const Config& c) {
      return run_tiny_on_ranks(size, c, kSteps, {}, dropping_gpt2());
    };
    const RunOutcome reference = run_ranks(base);
    for (const Variant& variant : variants()) {
      Config varied = base;
      variant.edit(varied);
      const RunOutcome outcome = run_ranks(varied);
      EXPECT_EQ(outcome.digest, reference.digest) << size << " ranks, " << variant.name;
      EXPECT_EQ(outcome.losses, reference.losses) << size << " ranks, " << variant.name;
    }
  }
}

// Four micro-batches are dealt to 1, 2 or 4 ranks: each has the same masks wherever it goes, so the
// first step's loss is one mean, added up in another order.
TEST_F(Dropout, BelongsToTheMicroBatchNotTheRank) {
  Config base = config();
  base.compute_threads = base.optimizer_threads = 1;
  std::vector<double> losses;
  for (const int size : {1, 2, 4}) {
    base.accumulation_steps = 4 / size;
    losses.push_back(run_tiny_on_ranks(size, base, 1, {}, dropping_gpt2()).losses[0]);
  }
  EXPECT_NEAR(losses[1], losses[0], 1e-12);
  EXPECT_NEAR(losses[2], losses[0], 1e-12);
}

Engine make_engine(const Config& config, const Gpt2Config& gpt2) {
  Engine::Options options;
  options.micro_batch = {config.micro_batch, gpt2.n_positions};
  return EngineTestAccess::make(models::gpt2(gpt2), config, options, {});
}

void copy_parameters(Engine& from, Engine& to) {
  for (const auto& layer : models::gpt2(tiny_gpt2()).layers) {
    for (const Parameter& parameter : layer->parameters()) {
      to.write_parameter(parameter.name, from.read_parameter(parameter.name, StateKind::master));
    }
  }
}

// From the same parameters, so that only the masks may differ.
TEST_F(Dropout, DrawsByTheSeed) {
  const auto batches = tiny_batches(config().accumulation_steps, 100);
  for (const bool dropping : {false, true}) {
    const Gpt2Config gpt2 = dropping ? dropping_gpt2() : tiny_gpt2();
    Config reseeded = config();
    reseeded.seed += 1;
    Engine one = make_engine(config(), gpt2), other = make_engine(reseeded, gpt2);
    copy_parameters(one, other);
    const double loss = one.train_step(views(batches)).loss;
    const double other_loss = other.train_step(views(batches)).loss;
    EXPECT_EQ(loss != other_loss, dropping);
  }
}

// The same rows twice in a step, and in the next one, which does not learn: other masks.
TEST_F(Dropout, DrawsAnewForEveryMicroBatchAndStep) {
  Config still = config();
  still.optimizer.lr = 0;
  const auto loss_of = [&](const std::vector<size_t>& picks, int steps) {
    still.accumulation_steps = static_cast<int64_t>(picks.size());
    Engine engine = make_engine(still, dropping_gpt2());
    const auto batches = tiny_batches(2, 100);
    std::vector<Batch> step;
    for (const size_t pick : picks) step.push_back(batches[pick].view());
    double loss = 0;
    for (int i = 0; i < steps; ++i) loss = engine.train_step(step).loss;
    return loss;
  };
  EXPECT_NE(loss_of({0}, 1), loss_of({0, 0}, 1));
  EXPECT_NE(loss_of({0}, 1), loss_of({0}, 2));
  // Nor does the order of two micro-batches leave the masks with their rows.
  EXPECT_NE(loss_of({0, 1}, 1), loss_of({1, 0}, 1));
}

TEST_F(Dropout, IsNotInEvaluationAndScores) {
  const auto batches = tiny_batches(3, 9);
  const std::vector<int32_t> tokens = {3, 1, 4, 1, 5};
  Engine plain = make_engine(config(), tiny_gpt2());
  Engine engine = make_engine(config(), dropping_gpt2());
  EXPECT_EQ(engine.evaluate(views(batches)), plain.evaluate(views(batches)));
  EXPECT_EQ(engine.next_token_scores(tokens), plain.next_token_scores(tokens));
  // Nor does evaluation between steps change what they draw.
  Engine interrupted = make_engine(config(), dropping_gpt2());
  for (uint64_t step = 0; step < 2; ++step) {
    const auto own = tiny_batches(config().accumulation_steps, step);
    engine.train_step(views(own));
    interrupted.train_step(views(own));
    const double loss = interrupted.evaluate(views(batches));
    EXPECT_EQ(interrupted.evaluate(views(batches)), loss);
  }
  EXPECT_EQ(engine.digest(), interrupted.digest());
}

}  // namespace
}  // namespace strata
