#include "engine/comm/mpi_transport.h"

#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <climits>
#include <cstring>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "engine/comm/deadline.h"
#include "engine/comm/failure_text.h"
#include "engine/comm/libraries.h"
#include "engine/comm/mpi_process.h"
#include "engine/comm/peer_mesh.h"
#include "engine/comm/peer_watch.h"
#include "strata/clock.h"
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

// What goes ahead of a trade's bytes, so that the other side knows what they are of.
struct CallMessage {
  Call call() const { return {verb, label.data(), bytes}; }

  Verb verb = Verb::make_communicator;
  std::array<char, 44> label = {};
  uint64_t bytes = 0;
};

CallMessage message_of(const Call& call) {
  CallMessage message = {.verb = call.verb, .bytes = call.bytes};
  std::strncpy(message.label.data(), call.label, message.label.size() - 1);
  return message;
}

// Where messages go: the same for all flows of a transport.
struct Route {
  MPI_Comm communicator = MPI_COMM_NULL;
  int tag = 0;
  int rank = 0;
  int chunk_bytes = 0;
};

// One direction of a trade with one peer: its call, then its bytes a chunk at a time.
class Flow {
 public:
  enum class Way : uint8_t { give, take };

  Flow(const Route& route, int peer, Way way) : route_(route), peer_(peer), way_(way) {}

  // `data` is only read where the way is to give. `mine` stays until done(). `bytes` of data follow
  // the call.
  void start(const CallMessage& mine, std::byte* data, uint64_t bytes) {
    mine_ = &mine;
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

  // Posts what comes next when the last is through, and says whether it was. Throws CommError.
  bool advance() {
    if (done()) return false;
    int arrived = 0;
    MPI_Status status;
    check(MPI_Test(&request_, &arrived, &status), peer_);
    if (arrived == 0) return false;
    if (way_ == Way::take) inspect(status);
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

  void inspect(const MPI_Status& status) const {
    int bytes = 0;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    if (bytes != in_flight_bytes_) {
      throw CommError(fmt::format("rank {} sent {} bytes where {} were to come", peer_, bytes,
                                  in_flight_bytes_));
    }
    if (at_message_ && !agree(mine_->call(), message_.call())) {
      throw CommError(mismatch_text({route_.rank, mine_->call()}, {peer_, message_.call()}));
    }
  }

  const Route& route_;
  const int peer_;
  const Way way_;
  const CallMessage* mine_ = nullptr;
  CallMessage message_;  // ours on its way, or theirs
  bool at_message_ = false;
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
  uint64_t posted_bytes_ = 0;
  int in_flight_bytes_ = 0;
  MPI_Request request_ = MPI_REQUEST_NULL;
};

// Between two looks at MPI. The peer that is waited for may need this core, so it is given away: at
// first for a moment; once nothing has moved for long, by sleeping, so that those who compute have
// it. Bytes that flow go no faster than both sides look, so then nobody sleeps.
class BackOff {
 public:
  void restart() { begin_ns_ = now_ns(); }
  void pause(bool bytes_flow) const {
    constexpr int64_t kYielding_ns = 100'000;
    constexpr std::chrono::microseconds kSleep(50);
    if (bytes_flow || now_ns() - begin_ns_ < kYielding_ns) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kSleep);
    }
  }

 private:
  int64_t begin_ns_ = now_ns();
};

void require_same(const World& world, const MpiProcess& process) {
  if (world.rank == process.rank() && world.size == process.size()) return;
  throw ConfigError(
      fmt::format("the launcher's variables say rank {} of {}, MPI sees rank {} of {}: start with "
                  "mpirun -n {}, or with srun --mpi=pmix",
                  world.rank, world.size, process.rank(), process.size(), world.size));
}

class MpiTransport final : public Transport {
 public:
  MpiTransport(MpiProcess& process, const MpiTransportOptions& options)
      : process_(process),
        timeout_s_(options.timeout_s),
        route_{.communicator = MPI_Comm_f2c(process.communicator()),
               .tag = process.begin_transport(),
               .rank = process.rank(),
               .chunk_bytes = static_cast<int>(std::min<uint64_t>(options.chunk_bytes, INT_MAX))} {
    for (int peer = 0; peer < size(); ++peer) {
      gives_.emplace_back(route_, peer, Flow::Way::give);
      takes_.emplace_back(route_, peer, Flow::Way::take);
    }
    const MeshOptions mesh = {rank(), size(), process.one_machine(), timeout_s_};
    watch_.emplace(connect_peers(mesh, [this](std::span<const std::byte> mine,
                                              std::span<std::byte> all) { announce(mine, all); }));
  }

  ~MpiTransport() override {
    process_.end_transport(/*in_order=*/!watch_->failed());
    watch_->leave(trades_);
  }

  int rank() const override { return process_.rank(); }
  int size() const override { return process_.size(); }
  std::string description() const override {
    return fmt::format("{} ranks over {}", size(), mpi_library());
  }

  void trade(const Trade& trade) override {
    ++trades_;
    try {
      if (watch_) watch_->check();  // what came before may be complete without the lost peer
      start(trade);
      finish(trade);
    } catch (const CommError& error) {
      for (Flow& flow : gives_) flow.give_up();
      for (Flow& flow : takes_) flow.give_up();
      if (!watch_) throw;
      watch_->fail(error.what());
      watch_->check();  // throws: this failure, or one that came before it
    }
  }

  void check() const override { watch_->check(); }

  void abort(std::string_view reason) noexcept override {
    watch_->fail(failed_text(rank(), reason));
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

  void start(const Trade& trade) {
    message_ = message_of(trade.call);
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == rank()) continue;
      takes_[peer].start(message_, trade.taken_from(peer), trade.moved_bytes());
      gives_[peer].start(message_, const_cast<std::byte*>(trade.given_to(peer)),
                         trade.moved_bytes());
    }
  }

  void finish(const Trade& trade) {
    BackOff back_off;
    int64_t deadline_ns = deadline_ns_after(timeout_s_);
    for (;;) {
      const bool moved = advance();
      if (all_done()) return;
      if (watch_) throw_if_lost(trade.call);
      if (moved) {
        back_off.restart();
        deadline_ns = deadline_ns_after(timeout_s_);
      } else if (now_ns() < deadline_ns) {
        back_off.pause(bytes_flow());
      } else {
        throw CommError(stalled_text(missing(), trade.call, timeout_s_));
      }
    }
  }

  bool advance() {
    bool moved = false;
    for (int peer = 0; peer < size(); ++peer) {
      moved |= takes_[peer].advance();
      moved |= gives_[peer].advance();
    }
    return moved;
  }

  bool done_with(int peer) const { return gives_[peer].done() && takes_[peer].done(); }

  // Whether a peer that has come is yet to take or to give all.
  bool bytes_flow() const {
    for (int peer = 0; peer < size(); ++peer) {
      if (!done_with(peer) && takes_[peer].met()) return true;
    }
    return false;
  }

  bool all_done() const {
    for (int peer = 0; peer < size(); ++peer) {
      if (!done_with(peer)) return false;
    }
    return true;
  }

  std::vector<int> missing() const {
    std::vector<int> ranks;
    for (int peer = 0; peer < size(); ++peer) {
      if (!done_with(peer)) ranks.push_back(peer);
    }
    return ranks;
  }

  void throw_if_lost(const Call& call) const {
    watch_->check();
    for (int peer = 0; peer < size(); ++peer) {
      if (done_with(peer) || !watch_->left_before(peer, trades_)) continue;
      throw CommError(left_text(peer, rank(), call));
    }
  }

  MpiProcess& process_;
  const double timeout_s_;
  const Route route_;
  std::vector<Flow> gives_, takes_;  // by rank; this rank's own are never started
  CallMessage message_;              // of the trade under way
  uint64_t trades_ = 0;
  std::optional<PeerWatch> watch_;
};

}  // namespace

std::unique_ptr<Transport> make_mpi_transport(const World& world,
                                              const MpiTransportOptions& options) {
  MpiProcess& process = MpiProcess::get();
  require_same(world, process);
  return std::make_unique<MpiTransport>(process, options);
}

}  // namespace strata::engine
