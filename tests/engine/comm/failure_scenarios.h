// Runs of three ranks that end badly, and what each rank must be told. One source for ranks that
// are threads and ranks that are processes.
#pragma once

#include <span>
#include <string>

#include "tests/engine/comm/ranks.h"

namespace strata::testing_support {

inline constexpr int kScenarioRanks = 3;

struct FailureScenario {
  const char* name;
  void (*run)(Rank& rank);  // rank 1 is the one that goes wrong
  double timeout_s;
  const char* told;  // to every rank: a regular expression; "" where all goes well
  bool rank_1_is_told = true;
};

std::span<const FailureScenario> failure_scenarios();

// What `rank` was told, "" when it met no failure.
std::string told_in(const FailureScenario& scenario, Rank& rank);

}  // namespace strata::testing_support
