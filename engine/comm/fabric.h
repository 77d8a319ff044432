// A device's own network between ranks: bytes go from memory of one device to another's in the
// order of a queue, and no host looks at them. NCCL is one (nccl_fabric.cc); tests have a stand-in.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/comm/transport.h"
#include "kernels/device/device.h"
#include "strata/dtype.h"

namespace strata::engine {

// A reduce-scatter by the network itself: out[i] = sum over ranks of their flat[rank * numel + i],
// in `dtype`, rounded after each addition, in an order that the network chooses and keeps to while
// the world and the call are the same.
struct NetworkSum {
  Call call;  // bytes: of a shard
  const void* flat = nullptr;
  void* out = nullptr;  // shard_numel elements; lies outside of `flat`
  int64_t shard_numel = 0;
  DType dtype = DType::bf16;
};

// One rank's connection. Who enqueues is one thread; failure() and abort() are for any.
class Fabric {
 public:
  virtual ~Fabric() = default;

  // "NCCL 2.27.7"
  virtual std::string description() const = 0;

  // Enqueues this rank's side of a trade, whose places lie in the queue's device. May wait for its
  // peers to come to theirs, until abort(); behind that it does nothing. Throws CommError.
  virtual void trade(Queue& queue, const Trade& trade) = 0;
  // The same of a sum.
  virtual void reduce_scatter(Queue& queue, const NetworkSum& sum) = 0;

  // What the network itself found wrong; empty: nothing so far.
  virtual std::string failure() = 0;

  // What is enqueued ends soon, done or not.
  virtual void abort() noexcept = 0;
};

// Collective. Ranks find each other through `bootstrap`. Throws CommError when they do not connect
// within the timeout, and ConfigError where this build or machine has no NCCL.
std::unique_ptr<Fabric> make_nccl_fabric(Transport& bootstrap, double timeout_s);

}  // namespace strata::engine
