// A run's configuration.
#include "strata/config.h"
#include "tests/fuzz/fuzz_target.h"

namespace strata::fuzzing {

void fuzz(std::string_view input) { Config::from_json(input, "ds_config.json", /*world_size=*/2); }

}  // namespace strata::fuzzing
