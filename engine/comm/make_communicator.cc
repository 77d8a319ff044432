#include <fmt/format.h>

#include <utility>

#include "engine/comm/communicator.h"
#include "engine/comm/device_communicator.h"
#include "engine/comm/host_communicator.h"
#include "engine/comm/local_transport.h"
#include "engine/comm/mpi_transport.h"
#include "engine/comm/tcp_transport.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

std::unique_ptr<Transport> connect(const World& world, const CommunicatorOptions& options) {
  if (world.group != nullptr) {
    if (world.group->size() != world.size || world.rank < 0 || world.rank >= world.size) {
      throw ConfigError(fmt::format("rank {} of {} is none of its group of {}: use World::local()",
                                    world.rank, world.size, world.group->size()));
    }
    return make_local_transport(world.group, world.rank, options);
  }
  if (world.size == 1) return make_local_transport(std::make_shared<LocalGroup>(1), 0, options);
  if (!world.master.address.empty()) {
    return make_tcp_transport(world, {.timeout_s = options.timeout_s});
  }
  return make_mpi_transport(world, {.timeout_s = options.timeout_s});
}

}  // namespace

std::unique_ptr<Communicator> make_communicator(const World& world, Queue& queue,
                                                ops::StateOps& ops,
                                                const CommunicatorOptions& options,
                                                TrafficSink& traffic) {
  const bool on_device = queue.native_handle() != nullptr;
  require(on_device || options.reduction == ReductionChoice::exact,
          "make_communicator: host memory has no network that adds");
  auto transport = connect(world, options);
  // A rank alone trades nothing.
  if (!on_device || world.size == 1) {
    return std::make_unique<HostCommunicator>(std::move(transport), queue, ops, traffic);
  }
  auto fabric = make_nccl_fabric(*transport, options.timeout_s);
  return std::make_unique<DeviceCommunicator>(std::move(transport), std::move(fabric), queue, ops,
                                              options, traffic);
}

}  // namespace strata::engine
