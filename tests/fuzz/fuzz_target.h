// Fuzzing of what reads bytes from outside. A target is a file that defines fuzz(); one_input.cc
// holds it to its contract, and libFuzzer or driver.cc makes the inputs.
#pragma once

#include <cstdint>
#include <string_view>

namespace strata::fuzzing {

// Reads `input`. Returns or throws strata::Error; anything else is a finding, and so is memory
// beyond allocation_limit().
void fuzz(std::string_view input);

// Memory in use at a time while an input of so many bytes is read. A JSON value of two bytes is one
// of 16 in memory, in a vector that doubles, and a key takes a node of each of several containers.
constexpr int64_t allocation_limit(size_t input_bytes) {
  constexpr int64_t kFixedBytes = 1 << 20;
  constexpr int64_t kBytesPerByte = 100;
  return kFixedBytes + kBytesPerByte * static_cast<int64_t>(input_bytes);
}

// Ends the program unless `condition` holds: for what must be true of an input that was accepted.
void expect(bool condition, const char* what);

}  // namespace strata::fuzzing
