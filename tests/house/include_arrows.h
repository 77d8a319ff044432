// Which folder may include which: the arrows of the house, read from the sources.
//
//   tools -> engine -> offload -> {io, kernels/device} -> include
//            engine -> kernels/ops -> {kernels/device, include}
//
// A folder may include what lies anywhere below it. Tests may include anything, nobody includes
// tests, and public headers include no backend's. Project headers are named from the repository
// root, public ones as "strata/...".
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace strata::house {

struct Include {
  int line = 0;  // from 1
  std::string header;
  bool quoted = false;  // "header", not <header>

  friend bool operator==(const Include&, const Include&) = default;
};

// The include directives of a source text, in order; those behind a line comment do not count.
std::vector<Include> find_includes(std::string_view source);

// Empty where `file` (a path from the repository root) may have this include; else why not.
std::string wrong_arrow(std::string_view file, const Include& include);

struct Inspection {
  int files = 0;
  int includes = 0;
  std::vector<std::string> faults;  // "io/ring.h:7: io must not include offload/pump.h"
};

// Reads every source under `root`, the repository. Throws std::runtime_error when a folder of the
// house is not there or a file cannot be read.
Inspection inspect_includes(const std::filesystem::path& root);

}  // namespace strata::house
