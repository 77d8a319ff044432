// One rank's run: owns every part and executes the plan's programs.
//
// The driver thread walks a program and enqueues; queues, the pump and the optimizer pipeline work
// behind it; it waits for a step's gradients, and for a unit's parameters where the step before
// still updates them. Members are destroyed in reverse order, so each may use
// what is declared above it until its end.
//
// In a world of several ranks every verb is collective.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/checkpoint/checkpoint_folder.h"
#include "engine/checkpoint/manifest.h"
#include "engine/comm/communicator.h"
#include "engine/plan/planner.h"
#include "engine/runtime/activation_store.h"
#include "engine/runtime/checkpoint_copy.h"
#include "engine/runtime/gather_order.h"
#include "engine/runtime/gradient_lander.h"
#include "engine/runtime/loss_scaler.h"
#include "engine/runtime/nvme_store.h"
#include "engine/runtime/parameter_window.h"
#include "engine/runtime/parts.h"
#include "engine/runtime/recorded_gathers.h"
#include "engine/runtime/run_files.h"
#include "engine/runtime/state_access.h"
#include "engine/runtime/updater.h"
#include "engine/runtime/watchdog.h"
#include "kernels/device/compute_spans.h"
#include "kernels/ops/layer_ops.h"
#include "kernels/ops/state_ops.h"
#include "offload/recorder.h"
#include "offload/tier_manager.h"
#include "offload/training_state.h"
#include "strata/engine.h"

namespace strata::engine {

class Runtime {
 public:
  Runtime(Model model, const Config& config, const World& world, const Engine::Options& options,
          const Disturbance& disturbance);
  ~Runtime();

  // Calls a verb of this run; when it throws here, the other ranks, which may be waiting in it, are
  // told and end too. Where the watchdog has ended the run, it is the watchdog's error that is
  // thrown.
  template <typename Verb>
  auto together(const char* name, const Verb& verb) {
    const Watchdog::Call call(watchdog_.get(), name);
    try {
      return verb();
    } catch (const SharedIoError&) {
      throw_if_ended();
      throw;
    } catch (const std::exception& error) {
      throw_if_ended();
      if (world_.size > 1) comm_->abort(error.what());
      throw;
    }
  }

  StepResult train_step(std::span<const Batch> micro_batches);
  // As Engine's verbs around compute of one's own.
  std::span<const TensorView> gather(int unit);
  void let_go(int unit);
  std::span<const TensorView> gradients(int unit);
  void reduce(int unit);
  StepResult step(double loss);
  void* stream() const { return compute_->native_handle(); }
  double loss_scale() const { return loss_scaler_.scale(); }

  double evaluate(std::span<const Batch> micro_batches);
  std::vector<float> scores(const Batch& batch);
  std::vector<float> next_token_scores(std::span<const int32_t> tokens);
  // Waits for all that the last step left under way; throws what failed.
  void settle();
  std::vector<float> read_parameter(std::string_view name, StateKind kind);
  void write_parameter(std::string_view name, std::span<const float> values);
  std::string digest();
  void save_checkpoint(const std::string& path);
  std::string save_checkpoint(int keep);
  void begin_checkpoint(int keep);
  std::vector<CheckpointOutcome> await_checkpoints();
  void set_data_position(int64_t position);
  int64_t data_position() const { return data_position_; }
  void remove_state_files();
  int64_t steps_done() const { return step_; }
  int rank() const { return world_.rank; }
  const Plan& plan() const { return *plan_; }
  const offload::Recorder& recorder() const { return recorder_; }
  std::vector<std::string> description() const;

 private:
  // Labels of the times that a step stood still (Activity::wait).
  static constexpr const char* kRanksWaitLabel = "step waits for other ranks";
  static constexpr const char* kSlotWaitLabel = "step waits for a checkpoint";

  // Moments of a step on the compute queue, in nanoseconds; written there.
  struct Marks {
    int64_t last = 0;
    int64_t forward_ns = 0;
    int64_t backward_ns = 0;
  };

  // A line of transfers between nvme and memory reserved under a name.
  struct FileLine {
    offload::Arena ring;
    std::unique_ptr<offload::FileQueue> queue;  // null without such a reservation
  };

  // A step from its first verb to its last.
  struct StepAccount {
    int64_t number = 0;
    double lr = 0;
    double mean_scale = 1;
    int64_t begin_ns = 0;
    LinkBytes moved_before = {};
    StepResult::Exposed exposed_before;
  };
  // Where the caller computes.
  struct OwnCompute {
    OwnCompute(RecordedGathers recorded, size_t units)
        : gathers(std::move(recorded)), reduced(units, 0), gradients(units) {}
    RecordedGathers gathers;
    std::vector<int> reduced;                        // by unit: micro-batches of this step
    std::vector<std::vector<TensorView>> gradients;  // by unit
    int held = 0;                                    // leases
    bool begun = false;                              // the step
    StepAccount account;
  };

  // What an evaluation reads of the last layer's scores on its way.
  struct ScoreRows {
    int64_t first_row = 0, rows = 0;
    std::vector<float> values = {};  // (rows, classes)
    int64_t columns_read = 0;
  };

  void build(const Disturbance& disturbance, const ParameterReader& initial_values);
  void start_watchdog(const Engine::Options& options);
  void throw_if_ended() const {
    if (watchdog_ != nullptr) watchdog_->throw_if_ended();
  }
  // Until nothing uses what is about to go: what a failure left behind too.
  void come_to_rest() noexcept;
  // Brings the state to where training begins: recovered, loaded, or initial.
  void start(const ParameterReader& initial_values);
  // Whether a step was recovered.
  bool recover();
  void load_checkpoint();
  Manifest manifest() const;  // but for what is in the files
  void require_between_steps() const;
  // Throws ConfigError without a run directory.
  CheckpointFolder own_checkpoints() const;
  void tidy_checkpoints(const std::string& saved, int keep);
  // Of a checkpoint under way: waits until it is over.
  void end_copy();
  // Before anything is updated.
  void await_slot();
  std::string frozen_path() const;  // where a run that recovers steps keeps frozen parameters
  RunState run_state() const;
  // Throws ConfigError for a state of another seed.
  void restore(const RunState& state);
  // Those that work, and wait for no other rank.
  template <typename Visit>
  void for_working_queues(const Visit& visit) const {
    for (const auto& queue :
         {&compute_, &copy_in_, &copy_out_, &param_in_, &param_out_, &activations_in_,
          &activations_out_, &landing_, &host_update_, &checkpoint_queue_}) {
      visit(**queue);
    }
  }
  template <typename Visit>
  void for_file_queues(const Visit& visit) const {
    for (const FileLine* line : {&parameter_files_, &gradient_files_, &activation_files_}) {
      if (line->queue != nullptr) visit(line->queue->queue());
    }
  }
  FileLine make_file_line(const char* ring_name, const char* queue_name);
  // Throws ConfigError when another rank runs another model or configuration.
  void compare_with_peers();
  // Every rank's `mine`, in rank order; at most kStepDoubles of each. Holds until the next call.
  std::span<const double> of_all_ranks(std::span<const double> mine);
  // Throws when other bytes moved since `before` than were planned.
  void check_traffic(const LinkBytes& before, const LinkBytes& planned) const;
  void check_batch(const Batch& batch) const;
  void check_batches(std::span<const Batch> batches, size_t expected) const;
  StepAccount begin_step();
  // `losses` is the sum over this rank's micro-batches.
  StepResult finish_step(const StepAccount& account, double losses);
  void require_own_compute(const char* verb, int unit) const;
  void begin_own_step();
  int next_micro_batch(int unit) const;
  void hand_over();
  void require_layers_compute() const;
  double evaluate(const Batch& batch, ScoreRows* scores = nullptr);  // its mean loss
  // Throws ConfigError for a model that has none, or not those of all classes.
  void check_scores() const;
  TensorView scores_of(int unit) const;  // where Layer::scores has them
  uint64_t score_bytes(const ScoreRows& scores) const;
  // What a unit's forward has left of them, before the next tile's takes its place.
  void read_scores(int unit, ScoreRows& wanted);
  std::vector<float> scores(const Batch& batch, int64_t first_row, int64_t rows);
  void upload(std::span<const Batch> batches);
  void execute(const Program& program, bool training, ScoreRows* scores = nullptr);
  void forward(const Action& action, bool training);
  void backward(const Action& action);
  LayerContext layer_context(const Action& action, std::span<const TensorView> params) const;
  // A unit's output in its place, and the gradient of it; a null view without one.
  TensorView output(int unit, int place) const;
  TensorView output_grad(int unit, int place) const;
  double read_losses(size_t count);  // their sum
  // Compute that follows belongs to this phase; null: to none.
  void enter(int64_t Marks::*phase);
  StepResult::Exposed exposed() const;  // since the start
  LinkBytes moved() const;              // likewise
  LinkBytes promised() const;           // by all updates so far, done or not
  LinkBytes planned(const StepResult& result) const;
  void update(StepResult& result, double sum_of_squares, double mean_scale);
  double clip_factor(double grad_norm) const;
  void landed(int unit);
  void begin_commit();
  void await_commit();
  // Every whole unit is complete on every rank, or on its way there.
  void complete_units();
  // Without overlap: one thing at a time.
  void finish_all();

  const Model model_;
  const Config config_;
  const World world_;
  const BatchShape shape_;
  const uint64_t data_hash_;
  const int held_units_;  // by the caller, which computes; 0: layers do
  const std::atomic<int>* const stop_;
  const std::string run_directory_, resume_;
  NullLogSink silent_;
  LogSink& log_;
  std::string binding_line_;  // of description()

  std::unique_ptr<Watchdog> watchdog_;  // null: switched off

  offload::Recorder recorder_;
  HostDeviceOptions host_options_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Queue> compute_;
  std::unique_ptr<Queue> copy_in_;
  std::unique_ptr<Queue> copy_out_;
  std::unique_ptr<Queue> comm_queue_;
  std::unique_ptr<Queue> param_in_;          // of the device: updated parameters
  std::unique_ptr<Queue> param_out_;         // of the device: parameters to update
  std::unique_ptr<Queue> activations_in_;    // of the device: outputs that come back for backward
  std::unique_ptr<Queue> activations_out_;   // of the device: outputs that leave until then
  std::unique_ptr<Queue> landing_;           // of gradients on the host
  std::unique_ptr<Queue> host_update_;       // of state on host and nvme
  std::unique_ptr<Queue> commit_;            // waits for writes, and makes them count
  std::unique_ptr<Queue> checkpoint_queue_;  // of the device: what a checkpoint under way copies
  std::unique_ptr<ComputeSpans> passes_;     // forward and backward through units
  std::unique_ptr<ops::LayerOps> layer_ops_;
  std::unique_ptr<ops::StateOps> device_state_ops_;
  std::unique_ptr<ops::StateOps> host_state_ops_;
  std::unique_ptr<Communicator> comm_;
  std::unique_ptr<Plan> plan_;
  std::unique_ptr<offload::TierManager> tiers_;

  offload::Arena batches_, batch_staging_;
  offload::Arena transfer_, checkpoint_transfer_;
  offload::Arena output_grads_, saved_, workspace_;
  offload::Arena losses_, loss_readback_, scores_readback_;

  std::unique_ptr<RunFiles> files_;
  std::string begin_line_;  // of description(): where training began
  // Null where nothing, or no such kind, lives on nvme.
  std::unique_ptr<NvmeStore> store_;
  FileLine parameter_files_, gradient_files_, activation_files_;
  std::unique_ptr<offload::TrainingState> state_;
  std::unique_ptr<StateAccess> access_;
  std::unique_ptr<ParameterWindow> window_;
  std::unique_ptr<GradientLander> lander_;
  std::unique_ptr<ActivationStore> activations_;
  std::unique_ptr<Updater> updater_;
  std::unique_ptr<GatherOrder> gathers_;

  std::unique_ptr<OwnCompute> own_;  // null: layers compute

  std::unique_ptr<CheckpointCopy> copy_;  // null: none is under way
  int copy_keep_ = 0;
  bool all_copied_ = false;                  // on all ranks
  std::vector<CheckpointOutcome> outcomes_;  // not told yet

  LossScaler loss_scaler_;
  int64_t step_ = 0;
  int64_t data_position_ = 0;
  int64_t next_data_position_ = 0;
  bool has_ended_ = false;        // its state files are gone
  bool commit_awaited_ = false;   // in this step
  std::vector<double> of_ranks_;  // what an exchange brings
  Marks marks_;
  int64_t Marks::*phase_ = nullptr;  // that the driver enqueues
};

}  // namespace strata::engine
