#include "engine/comm/mpi_transport.h"

#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <climits>
#include <cstring>
#include <span>
#include <thread>
#include <vector>

#include "engine/comm/libraries.h"
#include "engine/comm/mpi_process.h"
#include "engine/comm/peer_mesh.h"
#include "engine/comm/peer_transport.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

void check(int result, int peer) {
  if (result == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text = {};
  int length = 0;
  MPI_Error_string(result, text.data(), &length);
  throw CommError(fmt::format("MPI cannot reach rank {}: {}", peer, text.data()));
}

// Where messages go: the same for all flows of a transport.
struct Route {
  MPI_Comm communicator = MPI_COMM_NULL;
  int tag = 0;
  int chunk_bytes = 0;
};

// One direction of a trade with one peer: its call, then its bytes a chunk at a time.
class Flow {
 public:
  enum class Way : uint8_t { give, take };

  Flow(const Route& route, int peer, Way way) : route_(route), peer_(peer), way_(way) {}

  // `data` is only read where the way is to give. `bytes` of it follow the call.
  void start(const CallMessage& mine, std::byte* data, uint64_t bytes) {
    data_ = data;
    bytes_ = bytes;
    posted_bytes_ = 0;
    message_ = mine;
    at_message_ = true;
    post(reinterpret_cast<std::byte*>(&message_), sizeof(message_));
  }

  bool done() const { return request_ == MPI_REQUEST_NULL; }
  // Whether the peer has come to the trade, where the way is to take.
  bool met() const { return !at_message_; }

  // Posts what comes next when the last is through, and says whether it was. Before bytes are taken
  // inspect(theirs) may refuse them by throwing. Throws CommError.
  template <typename Inspect>
  bool advance(const Inspect& inspect) {
    if (done()) return false;
    int arrived = 0;
    MPI_Status status;
    check(MPI_Test(&request_, &arrived, &status), peer_);
    if (arrived == 0) return false;
    if (way_ == Way::take) {
      require_whole(status);
      if (at_message_) inspect(message_);
    }
    at_message_ = false;
    if (posted_bytes_ < bytes_) {
      const uint64_t left_bytes = bytes_ - posted_bytes_;
      const int bytes = static_cast<int>(std::min<uint64_t>(left_bytes, route_.chunk_bytes));
      post(data_ + posted_bytes_, bytes);
      posted_bytes_ += bytes;
    }
    return true;
  }

  // After a failure. What MPI has begun to move it cannot take back.
  void give_up() noexcept {
    if (done()) return;
    if (way_ == Way::take) MPI_Cancel(&request_);
    MPI_Request_free(&request_);
  }

 private:
  void post(std::byte* data, int bytes) {
    in_flight_bytes_ = bytes;
    check(way_ == Way::give
              ? MPI_Isend(data, bytes, MPI_BYTE, peer_, route_.tag, route_.communicator, &request_)
              : MPI_Irecv(data, bytes, MPI_BYTE, peer_, route_.tag, route_.communicator, &request_),
          peer_);
  }

  void require_whole(const MPI_Status& status) const {
    int bytes = 0;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    if (bytes != in_flight_bytes_) {
      throw CommError(fmt::format("rank {} sent {} bytes where {} were to come", peer_, bytes,
                                  in_flight_bytes_));
    }
  }

  const Route& route_;
  const int peer_;
  const Way way_;
  CallMessage message_;  // ours on its way, or theirs
  bool at_message_ = false;
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
  uint64_t posted_bytes_ = 0;
  int in_flight_bytes_ = 0;
  MPI_Request request_ = MPI_REQUEST_NULL;
};

void require_same(const World& world, const MpiProcess& process) {
  if (world.rank == process.rank() && world.size == process.size()) return;
  throw ConfigError(
      fmt::format("the launcher's variables say rank {} of {}, MPI sees rank {} of {}: start with "
                  "mpirun -n {} or srun --mpi=pmix, or set MASTER_ADDR and MASTER_PORT",
                  world.rank, world.size, process.rank(), process.size(), world.size));
}

class MpiTransport final : public PeerTransport {
 public:
  MpiTransport(MpiProcess& process, const MpiTransportOptions& options)
      : PeerTransport(process.rank(), process.size(), options.timeout_s),
        process_(process),
        route_{.communicator = MPI_Comm_f2c(process.communicator()),
               .tag = process.begin_transport(),
               .chunk_bytes = static_cast<int>(std::min<uint64_t>(options.chunk_bytes, INT_MAX))} {
    for (int peer = 0; peer < size(); ++peer) {
      gives_.emplace_back(route_, peer, Flow::Way::give);
      takes_.emplace_back(route_, peer, Flow::Way::take);
    }
    const MeshOptions mesh = {rank(), size(), process.one_machine(), timeout_s()};
    watch_over(connect_peers(mesh, [this](std::span<const std::byte> mine,
                                          std::span<std::byte> all) { announce(mine, all); }));
  }

  ~MpiTransport() override {
    process_.end_transport(/*in_order=*/!failed());
    leave();
  }

  std::string description() const override {
    return fmt::format("{} ranks over {}", size(), mpi_library());
  }

 private:
  // The first trade: the watch is yet to come, and the ranks meet in it.
  void announce(std::span<const std::byte> mine, std::span<std::byte> all) {
    trade({.call = {.verb = Verb::make_communicator, .bytes = mine.size()},
           .give = mine.data(),
           .take = all.data(),
           .take_stride = mine.size()});
    std::memcpy(all.data() + rank() * mine.size(), mine.data(), mine.size());
  }

  void start(int peer, const CallMessage& message, const Trade& trade) override {
    takes_[peer].start(message, trade.taken_from(peer), trade.moved_bytes());
    gives_[peer].start(message, const_cast<std::byte*>(trade.given_to(peer)), trade.moved_bytes());
  }

  bool advance(int peer) override {
    const auto inspect = [&](const CallMessage& theirs) { require_agreement(peer, theirs); };
    const bool taken = takes_[peer].advance(inspect);
    return gives_[peer].advance(inspect) || taken;
  }

  bool done(int peer) const override { return gives_[peer].done() && takes_[peer].done(); }

  // Between two looks at MPI. The peer that is waited for may need this core, so it is given away:
  // at first for a moment; once nothing has moved for long, by sleeping, so that those who compute
  // have it. Bytes that flow go no faster than both sides look, so then nobody sleeps.
  void pause(int64_t quiet_ns) override {
    constexpr int64_t kYielding_ns = 100'000;
    constexpr std::chrono::microseconds kSleep(50);
    if (quiet_ns < kYielding_ns || bytes_flow()) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kSleep);
    }
  }

  void give_up() noexcept override {
    for (Flow& flow : gives_) flow.give_up();
    for (Flow& flow : takes_) flow.give_up();
  }

  // Whether a peer that has come is yet to take or to give all.
  bool bytes_flow() const {
    for (int peer = 0; peer < size(); ++peer) {
      if (!done(peer) && takes_[peer].met()) return true;
    }
    return false;
  }

  MpiProcess& process_;
  const Route route_;
  std::vector<Flow> gives_, takes_;  // by rank; this rank's own are never started
};

}  // namespace

std::unique_ptr<Transport> make_mpi_transport(const World& world,
                                              const MpiTransportOptions& options) {
  MpiProcess& process = MpiProcess::get();
  require_same(world, process);
  return std::make_unique<MpiTransport>(process, options);
}

}  // namespace strata::engine
