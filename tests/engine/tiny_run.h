// A small GPT-2 and runs of it, for tests of the engine's promises.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/runtime/program.h"
#include "engine/runtime/runtime.h"
#include "strata/engine.h"
#include "strata/text_corpus.h"
#include "tests/temporary_directory.h"

namespace strata {

// Builds engines with what tests inject.
struct EngineTestAccess {
  static Engine make(Model model, const Config& config, const Engine::Options& options,
                     const engine::Disturbance& disturbance, const World& world = {}) {
    return Engine(
        std::make_unique<engine::Runtime>(std::move(model), config, world, options, disturbance));
  }
  static const offload::Recorder& recorder(const Engine& engine) {
    return engine.runtime_->recorder();
  }
};

namespace testing_support {

// 64 channels, 2 blocks, 4 heads, 65 tokens, 16 positions: 29 grains, most parameters larger than
// one grain.
models::Gpt2Config tiny_gpt2();

// What STRATA_TEST_DEVICE names: "cuda", or the host.
DeviceChoice device_under_test();

// Everything on the device, 2 micro-batches of 2 rows, clipping that bites, bf16.
Config tiny_config();

// With its batch divided among a world's ranks.
Config for_world(Config config, const World& world);

// Seeded tokens and their successors.
std::vector<OwnedBatch> tiny_batches(int64_t count, uint64_t seed);
std::vector<Batch> views(const std::vector<OwnedBatch>& batches);
// Every world.size'th of them, from world.rank on.
std::vector<Batch> of_rank(const std::vector<Batch>& batches, const World& world);

// One micro-batch in plain order through units that lie on the device, outputs of a byte each.
engine::ProgramInput program_input(const engine::ModelLayout& layout);

// A disk that is slow, works in bits and out of order, but is right in the end.
io::FaultPlan rough_disk(uint64_t seed);

struct RunOutcome {
  std::string digest;
  std::vector<double> losses;
  std::vector<double> loss_scales;
  int skipped_steps = 0;
};

// Trains `steps` steps (of a model that takes tiny_gpt2()'s tokens) and checks, in every step, that
// the bytes moved are the plan's and those of what was done again, and that peaks are at most the
// plan and the plan at most the budgets. Steps are skipped in fp16 alone, and move what they
// please. Ranks take turns at micro-batches.
RunOutcome run_tiny(const Config& config, int steps, const engine::Disturbance& disturbance = {},
                    const World& world = {}, const models::Gpt2Config& gpt2 = tiny_gpt2());

// The same on ranks that are threads; they must agree on everything they report. A disturbance's
// delays differ from rank to rank.
RunOutcome run_tiny_on_ranks(int size, const Config& config, int steps,
                             const engine::Disturbance& disturbance = {},
                             const models::Gpt2Config& gpt2 = tiny_gpt2());

}  // namespace testing_support
}  // namespace strata
