// What the commands of `strata checkpoint` share.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "engine/checkpoint/checkpoint_reader.h"

namespace strata::tools {

void add_checkpoint_inspect(CLI::App& checkpoint);

// What is said of every PATH.
inline constexpr const char* kPathHelp =
    "A checkpoint, or a run's directory, of which it is the newest checkpoint";

// Throws ConfigError where there is none.
std::string newest_checkpoint(const std::string& path);

// Of the tensors in a file, or in all of them.
uint64_t tensor_bytes(const engine::CheckpointReader& checkpoint, const std::string& file);
uint64_t tensor_bytes(const engine::CheckpointReader& checkpoint);

}  // namespace strata::tools
