// The ranks of a test: threads of this process, or, where mpirun started it, this process as one of
// them. One source of tests serves both.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/comm/communicator.h"
#include "kernels/device/device.h"
#include "kernels/ops/state_ops.h"
#include "strata/world.h"
#include "tests/kernels/device/device_fixture.h"

namespace strata::testing_support {

// Whether mpirun started this process as a rank.
bool under_mpi();

struct RankOptions {
  int size = 1;              // under MPI, the number of processes that there are
  uint64_t chunk_bytes = 0;  // of MPI's messages; 0 leaves it to Strata
  uint64_t delay_seed = 0;   // of the queues; 0: no delays
  bool fabric = false;       // bytes go over a stand-in for a device's network
  bool fast = false;         // the fabric adds up gradients
  bool tcp = false;          // threads meet as processes without MPI do
  double timeout_s = 120;    // long enough for a loaded machine: a test that gets there has failed
};

// What there is to test here: worlds of 1 to 4 threads, some of which meet over TCP, or the world
// of processes with large and with small messages.
std::vector<RankOptions> every_world();
std::string world_name(const testing::TestParamInfo<RankOptions>& world);

// As many ranks that meet over TCP at a free port of this machine.
std::vector<World> tcp_worlds(int size);

// Everything a rank has. Constructing it is collective, and so is make_communicator().
struct Rank {
  Rank(const World& world, const RankOptions& options) : world(world), options(options) {}

  int rank() const { return world.rank; }
  int size() const { return world.size; }
  std::unique_ptr<Queue> make_queue(const char* name);
  std::unique_ptr<engine::Communicator> make_communicator(Queue& on);

  const World world;
  const RankOptions options;
  RecordingSink sink;
  const std::unique_ptr<ops::StateOps> ops = ops::make_host_state_ops();
  const std::unique_ptr<Queue> queue = make_queue("compute");
  std::unique_ptr<engine::Communicator> communicator = make_communicator(*queue);
};

// Runs `body` on every rank that is in this process, each on a thread of its own. What it throws is
// a failure of the test, and ends the other ranks.
void on_every_rank(const RankOptions& options, const std::function<void(Rank&)>& body);

class RanksTest : public testing::TestWithParam<RankOptions> {
 protected:
  static void on_every_rank(const std::function<void(Rank&)>& body, uint64_t delay_seed = 0) {
    RankOptions options = GetParam();
    options.delay_seed = delay_seed;
    testing_support::on_every_rank(options, body);
  }
};

}  // namespace strata::testing_support
