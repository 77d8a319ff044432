// Text by a trained model.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "strata/engine.h"

namespace strata::tools {

struct SampleOptions {
  int64_t bytes = 200;
  int64_t sequence = 0;  // of the engine's micro-batches
  uint64_t seed = 1;
};

// What the model goes on with after `prompt`, at least one byte, of which the last `sequence`
// count: each byte is drawn from the model's distribution, sharpened by a temperature of 0.8. The
// same on every rank; collective.
std::string continue_text(Engine& engine, std::string_view prompt, const SampleOptions& options);

// `text` for a terminal: bytes outside ASCII's printable ones and newlines become dots.
std::string printable(std::string_view text);

}  // namespace strata::tools
