// What this build was made of, for start-up lines and `--version`.
#pragma once

#include <string>
#include <string_view>

namespace strata {

// What parallel_for runs on: "openmp" or "threads".
std::string_view parallel_backend();

// The CUDA that was built in: "CUDA 13.0"; empty when built without.
std::string cuda_backend();

// One line: "parallel_for on openmp, CUDA 13.0 (no NVIDIA driver is installed)".
std::string backends_description();

}  // namespace strata
