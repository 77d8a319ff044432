// The subcommands of `strata`. Each adds itself to the command line and, when chosen, runs and sets
// the exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace strata::tools {

// Exit codes, as documented by --help.
inline constexpr int kOk = 0;
inline constexpr int kFailed = 1;      // something broke while running
inline constexpr int kBadInput = 2;    // input that cannot be honoured
inline constexpr int kDoesNotFit = 3;  // the plan does not fit the machine
inline constexpr int kStuck = 4;       // the watchdog ended a process that could not end by itself

// Who says what standard error says: "strata", and in a world of several ranks which of them.
std::string speaker();

void add_bench(CLI::App& app);
void add_checkpoint(CLI::App& app);
void add_train(CLI::App& app);

}  // namespace strata::tools
