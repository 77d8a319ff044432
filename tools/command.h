// The subcommands of `strata`. Each adds itself to the command line and, when chosen, runs and sets
// the exit code.
#pragma once

#include <CLI/CLI.hpp>

namespace strata::tools {

// Exit codes, as documented by --help.
inline constexpr int kOk = 0;
inline constexpr int kFailed = 1;      // something broke while running
inline constexpr int kBadInput = 2;    // input that cannot be honoured
inline constexpr int kDoesNotFit = 3;  // the plan does not fit the machine

void add_bench(CLI::App& app);
void add_checkpoint(CLI::App& app);
void add_train(CLI::App& app);

}  // namespace strata::tools
