// A model's description.
#include <string>

#include "strata/model.h"
#include "tests/fuzz/fuzz_target.h"

namespace strata::fuzzing {

void fuzz(std::string_view input) {
  models::Gpt2Config::from_json(std::string(input), "config.json");
}

}  // namespace strata::fuzzing
