#include "tests/engine/comm/ranks.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <thread>
#include <utility>

#include "engine/comm/device_communicator.h"
#include "engine/comm/host_communicator.h"
#include "engine/comm/local_transport.h"
#include "engine/comm/mpi_transport.h"
#include "engine/comm/tcp_transport.h"
#include "kernels/device/host_device.h"
#include "kernels/ops/optimizer_ops.h"
#include "strata/error.h"
#include "tests/free_port.h"

namespace strata::testing_support {
namespace {

// A device's network on the host: trades in the order of the queue over a transport of its own,
// which says nothing of what goes wrong and waits until it is aborted, as a device does. Its sums
// go round: the addends of rank r's shard are rank r + 1's first, rank r's last.
class HostFabric final : public engine::Fabric {
 public:
  explicit HostFabric(std::unique_ptr<engine::Transport> transport)
      : transport_(std::move(transport)) {}

  std::string description() const override { return "a stand-in"; }
  void trade(Queue& queue, const engine::Trade& trade) override {
    if (!std::exchange(connected_, true)) connect();
    queue.run([this, trade] {
      try {
        if (all_make(trade.call)) return transport_->trade(trade);
      } catch (const CommError&) {
      }
      aborted_.wait(false);
    });
  }
  void reduce_scatter(Queue& queue, const engine::NetworkSum& sum) override {
    const auto others = std::make_shared<std::vector<std::byte>>(size() * sum.call.bytes);
    const auto* const flat = static_cast<const std::byte*>(sum.flat);
    trade(queue, {.call = sum.call,
                  .give = flat,
                  .give_stride = sum.call.bytes,
                  .take = others->data(),
                  .take_stride = sum.call.bytes});
    queue.run([this, sum, flat, others] {
      const int rank = transport_->rank();
      for (int hop = 1; hop <= size(); ++hop) {
        const int from = (rank + hop) % size();
        add(sum, (from == rank ? flat : others->data()) + from * sum.call.bytes, hop > 1);
      }
    });
  }
  std::string failure() override { return {}; }
  void abort() noexcept override {
    aborted_ = true;
    aborted_.notify_all();
    transport_->abort("aborted");
  }

 private:
  int size() const { return transport_->size(); }

  // A network does not see that calls differ, and its transport must not: a slower rank still
  // takes the bytes of the trade before, and a transport that failed would not let it.
  bool all_make(const engine::Call& call) {
    const std::array<uint64_t, 2> mine = {static_cast<uint64_t>(call.verb), call.bytes};
    std::vector<std::array<uint64_t, 2>> all(size(), mine);
    transport_->trade({.call = {engine::Verb::exchange, "calls", sizeof(mine)},
                       .give = reinterpret_cast<const std::byte*>(mine.data()),
                       .take = reinterpret_cast<std::byte*>(all.data()),
                       .take_stride = sizeof(mine)});
    return std::ranges::all_of(all, [&](const auto& theirs) { return theirs == mine; });
  }

  // As on a ring, whose sum is rounded whenever it is sent on.
  static void add(const engine::NetworkSum& sum, const std::byte* addend, bool add) {
    const int64_t numel = sum.shard_numel;
    std::vector<float> total(numel), more(numel);
    ops::cast(more.data(), DType::fp32, addend, sum.dtype, numel);
    if (add) ops::cast(total.data(), DType::fp32, sum.out, sum.dtype, numel);
    for (int64_t i = 0; i < numel; ++i) total[i] += more[i];
    ops::cast(sum.out, sum.dtype, total.data(), DType::fp32, numel);
  }

  // The first trade waits for its peers on the caller's thread, as NCCL's does.
  void connect() {
    try {
      transport_->trade({.call = {engine::Verb::make_communicator, "connect", 0}});
    } catch (const CommError&) {
      aborted_.wait(false);
    }
  }

  bool connected_ = false;
  std::atomic<bool> aborted_ = false;
  const std::unique_ptr<engine::Transport> transport_;
};

std::unique_ptr<engine::Transport> connect(const World& world, double timeout_s) {
  if (world.group != nullptr) {
    return engine::make_local_transport(world.group, world.rank, {.timeout_s = timeout_s});
  }
  if (!world.master.address.empty()) {
    return engine::make_tcp_transport(world, {.timeout_s = timeout_s});
  }
  return engine::make_mpi_transport(world, {.timeout_s = timeout_s});
}

void run(const World& world, const RankOptions& options, const std::function<void(Rank&)>& body) {
  try {
    Rank rank(world, options);
    try {
      body(rank);
    } catch (const std::exception& error) {
      if (rank.communicator != nullptr) rank.communicator->abort(error.what());
      throw;
    }
  } catch (const std::exception& error) {
    ADD_FAILURE() << "rank " << world.rank << ": " << error.what();
  }
}

}  // namespace

bool under_mpi() { return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr; }

std::vector<RankOptions> every_world() {
  if (!under_mpi()) {
    return {{.size = 1},
            {.size = 2},
            {.size = 3},
            {.size = 4},
            {.size = 3, .fabric = true},
            {.size = 2, .tcp = true},
            {.size = 4, .tcp = true},
            {.size = 3, .fabric = true, .tcp = true}};
  }
  const int size = World::from_environment().size;
  return {{.size = size}, {.size = size, .chunk_bytes = 1000}, {.size = size, .fabric = true}};
}

std::string world_name(const testing::TestParamInfo<RankOptions>& world) {
  const std::string size = std::to_string(world.param.size);
  const std::string way = world.param.fabric ? "Fabric" : "";
  if (!under_mpi()) return (world.param.tcp ? "tcp" : "local") + size + way;
  return "mpi" + size + way + (world.param.chunk_bytes == 0 ? "" : "SmallMessages");
}

std::vector<World> tcp_worlds(int size) {
  const int port = free_port();
  std::vector<World> worlds(size);
  for (int rank = 0; rank < size; ++rank) {
    worlds[rank].rank = worlds[rank].local_rank = rank;
    worlds[rank].size = worlds[rank].local_size = size;
    worlds[rank].master = {"127.0.0.1", port};
  }
  return worlds;
}

std::unique_ptr<Queue> Rank::make_queue(const char* name) {
  const uint64_t seed = options.delay_seed == 0 ? 0 : options.delay_seed * 100 + rank();
  return make_host_queue({.name = name, .threads = 2}, {.delay_seed = seed, .max_delay_us = 500},
                         sink);
}

std::unique_ptr<engine::Communicator> Rank::make_communicator(Queue& on) {
  if (options.fabric) {
    auto transport = connect(world, options.timeout_s);
    auto fabric = std::make_unique<HostFabric>(connect(world, /*timeout_s=*/1e6));
    return std::make_unique<engine::DeviceCommunicator>(
        std::move(transport), std::move(fabric), on, *ops,
        engine::CommunicatorOptions{
            .timeout_s = options.timeout_s,
            .reduction = options.fast ? ReductionChoice::fast : ReductionChoice::exact},
        sink);
  }
  if (options.chunk_bytes == 0 || world.size == 1) {
    return engine::make_communicator(world, on, *ops, {.timeout_s = options.timeout_s}, sink);
  }
  return std::make_unique<engine::HostCommunicator>(
      engine::make_mpi_transport(
          world, {.timeout_s = options.timeout_s, .chunk_bytes = options.chunk_bytes}),
      on, *ops, sink);
}

void on_every_rank(const RankOptions& options, const std::function<void(Rank&)>& body) {
  if (under_mpi()) return run(World::from_environment(), options, body);
  std::vector<std::jthread> threads;
  for (const World& world : options.tcp ? tcp_worlds(options.size) : World::local(options.size)) {
    threads.emplace_back([&options, &body, world] { run(world, options, body); });
  }
}

}  // namespace strata::testing_support
