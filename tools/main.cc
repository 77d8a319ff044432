// strata: train models whose state does not fit the GPU, and look at how it does.
#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <string>

#include "engine/comm/libraries.h"
#include "kernels/device/backends.h"
#include "strata/error.h"
#include "strata/world.h"
#include "tools/command.h"

std::string strata::tools::speaker() {
  try {
    const World world = World::from_environment();
    return world.size == 1 ? "strata" : fmt::format("strata (rank {})", world.rank);
  } catch (const ConfigError&) {
    return "strata";  // which is what there is to complain about
  }
}

namespace {

int fail(const std::exception& error, int code) {
  fmt::print(stderr, "{}: {}\n", strata::tools::speaker(), error.what());
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace strata;
  CLI::App app("Strata trains models whose state is larger than the memory of the GPUs.", "strata");
  app.footer(
      "Exit codes: 0 done, 1 failed while running, 2 input that cannot be honoured, "
      "3 the plan does not fit the machine, 4 the run stood still and the system did not let go of "
      "it (strata.watchdog).");
  app.set_version_flag("--version",
                       fmt::format("strata {} ({}, {}, {})", STRATA_VERSION, backends_description(),
                                   engine::mpi_library(), engine::nccl_library()));
  app.require_subcommand(1);
  tools::add_train(app);
  tools::add_bench(app);
  tools::add_checkpoint(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? tools::kOk : tools::kBadInput;
  } catch (const ConfigError& error) {
    return fail(error, tools::kBadInput);
  } catch (const OutOfBudget& error) {
    return fail(error, tools::kDoesNotFit);
  } catch (const std::exception& error) {
    return fail(error, tools::kFailed);
  }
  return tools::kOk;
}
