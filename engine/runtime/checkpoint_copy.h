// A checkpoint that is copied while training goes on.
//
// The slot that holds the state is pinned: steps go on in the others, and a thread of its own reads
// it when the step that wrote it is durable. It keeps to a share of the time, so that the steps
// beside it hardly slow down, until somebody waits for it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <thread>

#include "engine/checkpoint/checkpoint_writer.h"
#include "engine/checkpoint/manifest.h"
#include "engine/comm/communicator.h"
#include "engine/plan/planner.h"
#include "engine/runtime/state_access.h"
#include "kernels/device/device.h"
#include "offload/slot_store.h"
#include "offload/training_state.h"
#include "strata/traffic.h"

namespace strata::engine {

// Driven by one thread.
class CheckpointCopy {
 public:
  // All must outlive the copy.
  struct Parts {
    const Plan& plan;
    offload::TrainingState& state;
    offload::SlotStore& slots;
    Communicator& comm;
    Queue& queue;                 // of the device; the copy's own
    std::span<std::byte> memory;  // StateAccess's
    TrafficSink& traffic;
    double share = 1;  // of the time, that it reads and writes; above 0
  };
  // Collective: makes the files, as CheckpointWriter, and begins. `durable`: the state in the
  // current slots is. `manifest`: but for what is in the files.
  CheckpointCopy(const std::string& path, Manifest manifest, const Event& durable,
                 const Parts& parts);
  // Ends a copy under way, of which nothing stays.
  ~CheckpointCopy();
  CheckpointCopy(const CheckpointCopy&) = delete;
  CheckpointCopy& operator=(const CheckpointCopy&) = delete;

  const std::string& path() const { return path_; }
  int64_t step() const { return manifest_.run.step; }
  // Whether this rank's part is copied, or has failed. The slot is no longer pinned then.
  bool copied();
  // Until it is, without a pause any more.
  void wait();
  // Collective: waits, and gives the checkpoint its name. Throws SharedIoError where any rank's
  // part failed.
  void finish();

 private:
  void copy(const Event& durable) noexcept;
  // Between two parts of the state: sees that the disk has them, and pauses.
  void pace();

  const std::string path_;
  Manifest manifest_;
  const Parts parts_;
  offload::SlotPin pin_;
  const offload::TrainingState::Source source_;
  StateAccess access_;
  CheckpointWriter writer_;

  // The copying thread's: since its last pause, and until then.
  int64_t worked_from_ns_ = 0;
  uint64_t written_bytes_ = 0;
  std::atomic<bool> copied_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool hurries_ = false, ends_ = false;  // protected by mutex_
  std::thread thread_;
};

}  // namespace strata::engine
