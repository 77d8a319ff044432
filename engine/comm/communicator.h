// Collectives between the ranks of a run: bytes gathered, gradients reduced, lives watched.
//
// A communicator belongs to one rank and to one queue. Its verbs are collective: every rank makes
// the same calls with the same sizes in the same order. all_gather() and reduce_scatter() enqueue
// and return; spans stay until the work is done, and an event recorded behind them tells when. A
// queue on which a peer was lost is poisoned with the CommError that names it, on every rank the
// same one. Ranks that make different calls end the run too.
//
// After a CommError over MPI the process cannot make another communicator.
//
// Three transports: ranks as threads of one process (`local`), and processes under MPI (`mpi`) or
// without it (`tcp`). On GPUs the bytes go over NCCL, and a transport watches
// (device_communicator.h). All of them move the same bytes and give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kernels/device/device.h"
#include "kernels/ops/state_ops.h"
#include "strata/config.h"
#include "strata/dtype.h"
#include "strata/traffic.h"
#include "strata/world.h"

namespace strata::engine {

// A reduce-scatter of one flat buffer of world * shard_numel elements, shard after shard.
struct ReduceScatterSpans {
  const void* flat = nullptr;  // this rank's addends, `dtype`
  DType dtype = DType::bf16;   // fp32, bf16 or fp16
  float* out = nullptr;        // shard_numel elements
  int64_t shard_numel = 0;     // a multiple of the grain
  // Room for what peers send, aligned to an element: (world - 1) pieces of at least one grain each.
  // What does not fit at once goes in turns. All ranks give the same room. A fast reduction takes a
  // whole shard's, in `dtype`; none in fp32.
  std::span<std::byte> scratch;
};

// Every byte that goes to a peer is reported as Activity::comm, with the tag and the queue's name
// as lane, before an event behind the verb is reached. How many they are is said with each verb.
// Misuse that shows in the arguments throws Error at once.
class Communicator {
 public:
  // Waits for its verbs that are under way; where peers do not come to them, until the timeout or
  // abort(). Then tells the peers that this rank is through: one that waits for it from then on
  // gets CommError("rank R left the run while ...").
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // One line for people: "2 ranks over Open MPI v4.1.4".
  virtual std::string description() const = 0;

  // In place: `flat` has size() shards of shard_bytes (any number) end to end. This rank's own is
  // filled when the queue gets here; behind this all of them are. Sends (size() - 1) * shard_bytes.
  virtual void all_gather(std::byte* flat, uint64_t shard_bytes, const TrafficTag& tag) = 0;

  // out[i] = sum over ranks of their flat[rank() * shard_numel + i], in fp32, rank 0 first; where
  // the reduction is fast, in `dtype` as the fabric adds (fabric.h). Sends (size() - 1) *
  // shard_numel elements of `dtype`.
  virtual void reduce_scatter(const ReduceScatterSpans& spans, const TrafficTag& tag) = 0;

  // Small values in any host memory, at once: `all` becomes every rank's `mine`, in rank order.
  // `mine` may be empty and lies outside of `all`. Enqueues, waits for the queue, and throws what
  // it threw. Serves as a barrier too. Sends (size() - 1) * mine.size(), of StateKind::other.
  virtual void exchange(std::span<const std::byte> mine, std::span<std::byte> all) = 0;

  // The queue whose work stands still for other ranks: the communicator's, or one of its own.
  virtual Queue& waiting_queue() = 0;

  // Ends the run everywhere: what any rank waits for now or later, this one too, throws
  // CommError("rank R failed: <reason>"), the reason on one line and of bounded length. Any thread;
  // the first reason stays.
  virtual void abort(std::string_view reason) noexcept = 0;
};

struct CommunicatorOptions {
  // How long a verb waits for a peer that is alive before the run ends with a CommError naming it.
  double timeout_s = 600;
  ReductionChoice reduction = ReductionChoice::exact;  // fast: on a device's queue alone
};

// Over `world.group` where that is set, over TCP where `world.master` is, over MPI otherwise; for a
// single rank, over nothing.
// `queue` is a queue of the host device, or, as its native_handle() says, of a CUDA device; it,
// `ops` of the same device and `traffic` must outlive the communicator.
// Collective, in the same order on every rank where there are several: throws CommError when peers
// do not come within the timeout, ConfigError when this build or launcher cannot connect the ranks.
std::unique_ptr<Communicator> make_communicator(const World& world, Queue& queue,
                                                ops::StateOps& ops,
                                                const CommunicatorOptions& options,
                                                TrafficSink& traffic);

}  // namespace strata::engine
