// A small training in several lives: where each begins is where the one before ended.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/engine/local_ranks.h"
#include "tests/engine/tiny_run.h"

namespace strata::testing_support {

struct Life {
  Config config = tiny_config();
  int ranks = 1;
  models::Gpt2Config gpt2 = tiny_gpt2();
  std::function<bool(const std::string& name)> is_frozen = {};
  std::string run_directory = {}, resume = {};
  int until_step = 0;        // trains up to it
  std::string save_as = {};  // a checkpoint at the end; empty: none
  std::function<void(Engine&, const StepResult&, int rank)> after_step = {};
  engine::Disturbance disturbance = {};
  int disturbed_rank = kEveryRank;
  static constexpr int kEveryRank = -1;
  std::function<void(const std::string& what)> stuck = {};  // Engine::Options::stuck
};

struct LifeOutcome {
  std::string first_digest, digest;  // at its beginning and end
  int64_t first_step = 0;
  std::vector<double> losses;
  std::vector<std::string> failures;  // by rank
};

// Ranks are threads. The data of a step depends on its number alone, and the global batch on
// accumulation_steps * ranks. Without failure all ranks agree.
LifeOutcome live(const Life& life);

// Everything on nvme in two slots, and each step recoverable.
Config recoverable_config(const std::string& nvme_path);

}  // namespace strata::testing_support
