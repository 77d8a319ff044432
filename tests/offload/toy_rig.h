// What tests of the optimizer pipeline share: placements, and a rig whose update only adds numbers.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "io/io_backend.h"
#include "offload/pipeline_rig.h"
#include "offload/recorder.h"
#include "tests/offload/offload_fixture.h"

namespace strata::offload {

struct TierSetup {
  const char* name;
  TierFractions param;
  std::array<TierFractions, kOptimizerKindCount> state;
  double grad_on_nvme = 0;  // a part of the gradients; the rest is where the update is
};

inline void PrintTo(const TierSetup& setup, std::ostream* out) { *out << setup.name; }

inline constexpr TierFractions kDevice = {1, 0, 0};
inline constexpr TierFractions kHost = {0, 1, 0};
inline constexpr TierFractions kNvme = {0, 0, 1};

inline const TierSetup kSetups[] = {
    {"device", kDevice, {kDevice, kDevice, kDevice}},
    {"host", kHost, {kHost, kHost, kHost}},
    {"nvme_params_on_device", kDevice, {kNvme, kNvme, kNvme}},
    {"nvme_params_on_host", kHost, {kNvme, kNvme, kNvme}},
    {"moments_on_nvme", kDevice, {kHost, kNvme, kNvme}},
    {"all_on_nvme", kNvme, {kNvme, kNvme, kNvme}, 1},
    {"params_and_gradients_on_nvme", {0, 0.3, 0.7}, {kHost, kHost, kNvme}, 0.5},
    {"three_tiers", {0.5, 0.5, 0}, {TierFractions{0.2, 0.3, 0.5}, {0.2, 0.4, 0.4}, {0.2, 0.8, 0}}},
};

// Sub-groups in the order in which their state was read.
class ReadLog final : public TrafficSink {
 public:
  explicit ReadLog(TrafficSink& next) : next_(next) { order_.reserve(1000); }
  void record(const TrafficRecord& record) noexcept override {
    if (record.activity == Activity::nvme_read && record.tag.account == Account::update) {
      const std::lock_guard lock(mutex_);
      order_.push_back(record.tag.index);
    }
    next_.record(record);
  }
  std::vector<int32_t> order() const {
    const std::lock_guard lock(mutex_);
    return order_;
  }

 private:
  TrafficSink& next_;
  mutable std::mutex mutex_;
  std::vector<int32_t> order_;
};

// master += grad, exp_avg += 2, exp_avg_sq *= 2, param = master
void toy_update(const UpdateSpans& spans, Queue& queue);

struct ToyOptions {
  int64_t grains = 23;
  int64_t sub_group_grains = 4;
  int buffers = 2;
  int update_threads = 2;
  bool overlap = true;
  int slots = 1;
  uint64_t seed = 0;  // of queues' delays, and of the order of sub-groups
  std::optional<io::FaultPlan> faults = {};
  std::unique_ptr<io::IoBackend> backend = {};  // null: the machine's, with the faults
  bool checksums = true;
};

// One pipeline and all it stands on.
class ToyRig {
 public:
  explicit ToyRig(const TierSetup& setup, ToyOptions options = {}, UpdateFn update = toy_update);

  // Element i of `kind` becomes i + 1000 * kind.
  void fill();
  std::vector<float> read(StateKind kind);
  // Every element is as filled and then updated so many times.
  void expect_state(int updates);
  // Where the first element is that is another; nothing: none.
  std::optional<std::string> difference(int updates);
  OptimizerPipeline& pipeline() { return rig_->pipeline(); }
  Queue& gradients() { return *gradients_; }
  int updates() const { return updates_; }                      // begun
  const std::vector<int32_t>& order() const { return order_; }  // a shuffled one
  std::vector<int32_t> reads() const { return reads_.order(); }

  // Leaves everything under way.
  void start_step();
  // As a forward pass does it.
  void await_parameters();
  void commit();
  // What was promised is what was moved.
  void expect_promises_kept();

 private:
  // A sub-group's values in the transfer memory.
  std::byte* of(const SubGroup& group) const;

  const int64_t numel_;
  TemporaryDirectory directory_;
  Recorder recorder_{0};
  ReadLog reads_{recorder_};
  std::unique_ptr<Queue> gradients_;
  std::atomic<int> updates_ = 0;
  std::unique_ptr<Pump> pump_;
  std::vector<int32_t> order_;  // the pipeline reads ahead in it to its end
  std::optional<PipelineRig> rig_;
};

}  // namespace strata::offload
