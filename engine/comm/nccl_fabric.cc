// NCCL as a fabric. The library is opened when it is first needed, so that one binary starts with
// and without it.
#include <dlfcn.h>
#include <fmt/format.h>
#include <nccl.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/comm/deadline.h"
#include "engine/comm/fabric.h"
#include "engine/comm/libraries.h"
#include "strata/clock.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

// The functions that are used, from the library on this machine.
struct NcclLibrary {
  // It stays open: threads of its own may outlive a communicator.
  NcclLibrary() : handle(dlopen("libnccl.so.2", RTLD_NOW)) {
    if (handle == nullptr) {
      throw ConfigError(
          "several ranks compute on GPUs and libnccl.so.2 is not on this machine: install NCCL, "
          "put its directory into LD_LIBRARY_PATH, or set strata.device to \"host\"");
    }
    find(get_unique_id, "ncclGetUniqueId");
    find(comm_init_rank_config, "ncclCommInitRankConfig");
    find(comm_get_async_error, "ncclCommGetAsyncError");
    find(comm_abort, "ncclCommAbort");
    find(all_gather, "ncclAllGather");
    find(reduce_scatter, "ncclReduceScatter");
    find(send, "ncclSend");
    find(recv, "ncclRecv");
    find(group_start, "ncclGroupStart");
    find(group_end, "ncclGroupEnd");
    find(get_error_string, "ncclGetErrorString");
    find(get_last_error, "ncclGetLastError");
  }

  template <typename Function>
  void find(Function*& function, const char* name) const {
    function = reinterpret_cast<Function*>(dlsym(handle, name));
    if (function == nullptr) {
      throw ConfigError(
          fmt::format("libnccl.so.2 of this machine has no {}: install NCCL 2.14 or newer", name));
    }
  }

  void* const handle;
  decltype(ncclGetUniqueId)* get_unique_id = nullptr;
  decltype(ncclCommInitRankConfig)* comm_init_rank_config = nullptr;
  decltype(ncclCommGetAsyncError)* comm_get_async_error = nullptr;
  decltype(ncclCommAbort)* comm_abort = nullptr;
  decltype(ncclAllGather)* all_gather = nullptr;
  decltype(ncclReduceScatter)* reduce_scatter = nullptr;
  decltype(ncclSend)* send = nullptr;
  decltype(ncclRecv)* recv = nullptr;
  decltype(ncclGroupStart)* group_start = nullptr;
  decltype(ncclGroupEnd)* group_end = nullptr;
  decltype(ncclGetErrorString)* get_error_string = nullptr;
  decltype(ncclGetLastError)* get_last_error = nullptr;
};

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::fp32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::fp16:
      return ncclFloat16;
    case DType::int32:
      break;
  }
  return ncclInt32;
}

class NcclFabric final : public Fabric {
 public:
  NcclFabric(Transport& bootstrap, double timeout_s)
      : rank_(bootstrap.rank()), size_(bootstrap.size()) {
    try {
      connect(bootstrap, deadline_ns_after(timeout_s));
    } catch (const CommError& error) {
      abort();
      bootstrap.abort(error.what());
      bootstrap.check();  // throws: this failure, or one that came before it
    }
  }
  ~NcclFabric() override { abort(); }

  std::string description() const override { return nccl_library(); }

  void trade(Queue& queue, const Trade& trade) override {
    std::unique_lock lock(mutex_);
    if (comm_ == nullptr) return;
    auto* const stream = static_cast<cudaStream_t>(queue.native_handle());
    if (trade.give_stride == 0) {
      start(nccl_.all_gather(trade.given_to(rank_), trade.take, trade.call.bytes, ncclInt8, comm_,
                             stream),
            trade.call.label);
    } else {
      start(nccl_.group_start(), trade.call.label);
      ncclResult_t first_bad = ncclSuccess;  // told when the group is closed
      const auto note = [&](ncclResult_t result) {
        const bool is_good = result == ncclSuccess || result == ncclInProgress;
        if (!is_good && first_bad == ncclSuccess) first_bad = result;
      };
      for (int peer = 0; peer < size_; ++peer) {
        if (peer == rank_) continue;
        note(nccl_.send(trade.given_to(peer), trade.call.bytes, ncclInt8, peer, comm_, stream));
        note(nccl_.recv(trade.taken_from(peer), trade.call.bytes, ncclInt8, peer, comm_, stream));
      }
      note(nccl_.group_end());
      start(first_bad, trade.call.label);
    }
    settle(lock, trade.call.label);
  }

  void reduce_scatter(Queue& queue, const NetworkSum& sum) override {
    std::unique_lock lock(mutex_);
    if (comm_ == nullptr) return;
    start(nccl_.reduce_scatter(sum.flat, sum.out, sum.shard_numel, nccl_type(sum.dtype), ncclSum,
                               comm_, static_cast<cudaStream_t>(queue.native_handle())),
          sum.call.label);
    settle(lock, sum.call.label);
  }

  std::string failure() override {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return {};
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = nccl_.comm_get_async_error(comm_, &state);
    const ncclResult_t worst = asked != ncclSuccess ? asked : state;
    return worst == ncclSuccess || worst == ncclInProgress ? std::string() : text(worst);
  }

  void abort() noexcept override {
    const std::lock_guard lock(mutex_);
    if (comm_ != nullptr) nccl_.comm_abort(std::exchange(comm_, nullptr));
  }

 private:
  void connect(Transport& bootstrap, int64_t deadline_ns) {
    const ncclUniqueId id = share_id(bootstrap);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;  // so that a rank that is lost ends no thread of the others
    start(nccl_.comm_init_rank_config(&comm_, size_, id, rank_, &config), "connecting");
    while (!settled("connecting")) {
      bootstrap.check();
      if (now_ns() >= deadline_ns) {
        throw CommError(fmt::format("NCCL did not connect {} ranks in time", size_));
      }
      std::this_thread::yield();
    }
  }

  // Rank 0's, at every rank.
  ncclUniqueId share_id(Transport& bootstrap) const {
    ncclUniqueId mine = {};
    if (rank_ == 0) check(nccl_.get_unique_id(&mine), "beginning");
    std::vector<ncclUniqueId> all(static_cast<size_t>(size_));
    bootstrap.trade({.call = {Verb::make_communicator, "NCCL", sizeof(mine)},
                     .give = reinterpret_cast<const std::byte*>(&mine),
                     .take = reinterpret_cast<std::byte*>(all.data()),
                     .take_stride = sizeof(mine)});
    return rank_ == 0 ? mine : all[0];
  }

  std::string text(ncclResult_t result) const {
    return fmt::format("NCCL: {} ({})", nccl_.get_error_string(result),
                       nccl_.get_last_error(comm_));
  }
  void check(ncclResult_t result, const char* doing) const {
    if (result == ncclSuccess) return;
    throw CommError(fmt::format("{} on rank {}: {}", doing, rank_, text(result)));
  }
  // What a call that does not block returns.
  void start(ncclResult_t result, const char* doing) const {
    if (result != ncclInProgress) check(result, doing);
  }
  // Work is enqueued when NCCL says so, and not before; the first time it connects peers, which
  // abort() may end.
  void settle(std::unique_lock<std::mutex>& lock, const char* doing) {
    while (comm_ != nullptr && !settled(doing)) {
      lock.unlock();
      std::this_thread::yield();
      lock.lock();
    }
  }
  bool settled(const char* doing) const {
    ncclResult_t state = ncclSuccess;
    check(nccl_.comm_get_async_error(comm_, &state), doing);
    if (state == ncclInProgress) return false;
    check(state, doing);
    return true;
  }

  const NcclLibrary nccl_;
  const int rank_, size_;
  std::mutex mutex_;
  ncclComm_t comm_ = nullptr;  // null behind abort()
};

}  // namespace

std::unique_ptr<Fabric> make_nccl_fabric(Transport& bootstrap, double timeout_s) {
  return std::make_unique<NcclFabric>(bootstrap, timeout_s);
}

}  // namespace strata::engine
