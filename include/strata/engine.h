// The engine: trains a model whose state lives where the configuration says.
//
//   const auto world = strata::World::from_environment();
//   const auto config = strata::Config::from_file("ds_config.json", world.size);
//   strata::Engine engine(strata::models::gpt2(gpt2_config), config, world, options);
//   for (...) strata::StepResult result = engine.train_step(micro_batches);
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "strata/batch.h"
#include "strata/config.h"
#include "strata/error.h"
#include "strata/log.h"
#include "strata/model.h"
#include "strata/parameter_reader.h"
#include "strata/plan.h"
#include "strata/tensor.h"
#include "strata/world.h"

namespace strata {

// What became of a checkpoint.
struct CheckpointOutcome {
  int64_t step = 0;  // whose state it has
  std::string path;
  std::string failure;  // empty: it is there as a whole; otherwise nothing is
};

// What one step did. Times in seconds on this rank.
struct StepResult {
  int64_t step = 0;       // counted from 1
  double loss = 0;        // mean of the micro-batches' mean losses
  double grad_norm = 0;   // global, before clipping
  double lr = 0;          // the schedule's
  double loss_scale = 1;  // of this step's gradients
  bool skipped = false;   // a gradient was not finite: the state is as before
  int stop = 0;           // the largest Options::stop of all ranks: not 0, all should end here
  int64_t tokens = 0;

  double seconds = 0;
  struct Phases {
    double forward = 0, backward = 0, step = 0;
  } phases;
  // What stood still, and for how long: compute waiting for gathered parameters, compute waiting
  // for a gradient buffer, the step waiting for landing gradients, the step waiting for other
  // ranks to have theirs, the update waiting for nvme (hidden where it runs under a forward pass),
  // compute waiting for parameters that the step before still updates, and for activations that
  // were elsewhere; the update waiting for a checkpoint that copies what it would write over.
  struct Exposed {
    double gather = 0, grad_buffer = 0, landing = 0, ranks = 0, nvme = 0, update = 0;
    double activation = 0, checkpoint = 0;

    // What came after `before`.
    friend Exposed operator-(const Exposed& now, const Exposed& before) {
      return {now.gather - before.gather,
              now.grad_buffer - before.grad_buffer,
              now.landing - before.landing,
              now.ranks - before.ranks,
              now.nvme - before.nvme,
              now.update - before.update,
              now.activation - before.activation,
              now.checkpoint - before.checkpoint};
    }
  } exposed;
  // Sub-groups updated inside backward (`strata.speculate`), those of them that were updated again
  // or put back because the step was clipped or skipped, and the bytes that took beyond the plan's.
  struct Speculation {
    int64_t sub_groups = 0, redone = 0;
    LinkBytes redone_bytes = {};
  } speculation;
  LinkBytes moved = {};                        // by Activity: nvme_read, nvme_write, h2d, d2h, comm
  std::array<uint64_t, kTierCount> peak = {};  // bytes, by Tier, since the start
  std::vector<CheckpointOutcome> checkpoints = {};  // begun before, and over now; each told once
};

namespace engine {
class Runtime;
}  // namespace engine

// A hold on a unit's parameters: they stay where they are until it goes. Moves. Not longer than its
// engine, and not over a step.
class UnitLease {
 public:
  UnitLease() = default;
  UnitLease(UnitLease&& other) noexcept { *this = std::move(other); }
  UnitLease& operator=(UnitLease&& other) noexcept;
  ~UnitLease() { reset(); }

  // As declared, in the engine's dtype and the device's memory.
  std::span<const TensorView> parameters() const { return parameters_; }
  const TensorView& operator[](size_t i) const { return parameters_[i]; }
  void reset() noexcept;

 private:
  friend class Engine;
  UnitLease(engine::Runtime* runtime, int unit, std::span<const TensorView> parameters)
      : runtime_(runtime), unit_(unit), parameters_(parameters) {}

  engine::Runtime* runtime_ = nullptr;
  int unit_ = 0;
  std::span<const TensorView> parameters_;
};

// One training run of one rank. Not thread-safe: one driver thread calls it.
//
// In a world of several ranks all of them make the same calls in the same order, each with its own
// part of the data. A rank that dies, throws (for a wrong argument, too) or does not come within
// Config::comm_timeout_s ends the run on all of them: their calls throw CommError naming it.
//
// A run that stands still for Config::watchdog_s is ended too: calls throw IoError naming the
// transfer or DeviceError naming the queue that it waits for, on other ranks CommError with the
// same. The destructor waits for what the system still holds (Options::stuck).
class Engine {
 public:
  struct Options {
    BatchShape micro_batch;   // shape of every micro-batch; batch 0: Config::micro_batch rows
    bool keep_trace = false;  // false: events are counted but not kept
    LogSink* log = nullptr;   // null: silent. Must outlive the engine
    uint64_t data_hash = 0;   // of what else ranks must have in common: their training data
    // The caller computes, with gather(), gradients(), reduce() and step() in place of
    // train_step(); of gathered units it holds so many at a time.
    bool own_compute = false;
    int held_units = 2;
    // Where the run keeps what outlives its process, a new directory or an empty one; empty:
    // nothing does. Ranks share it.
    std::string run_directory = {};
    // To go on from: a run's directory, or a checkpoint. Of a run: the newest state that it made
    // durable, in that run's directory unless another is given. Empty: from the initial values.
    std::string resume = {};
    // A person's reasons to stop, not 0; read when a step's gradients have landed. Null: none ever.
    // Must outlive the engine.
    const std::atomic<int>* stop = nullptr;
    // Where the watchdog (Config::watchdog_s) has ended the run, and some time later a call of the
    // engine, its destructor too, has still not returned, because the system holds a thread or
    // memory of it: called once on a thread of the engine's, with one sentence. Nothing but the end
    // of the process helps then; std::_Exit is for here. Throws nothing. Empty: `log` is told.
    std::function<void(const std::string& what)> stuck = {};
    // What parameters start with, frozen ones too, in place of their initializers. Called by the
    // constructor alone, on each rank for its own part. Empty: initializers.
    ParameterReader initial_values = {};
  };

  // Plans, allocates, and writes the initial state, or brings back that which Options::resume
  // names. Throws ConfigError, OutOfBudget, IoError, CorruptionError, DeviceError or CommError
  // before the state of the run to go on with is changed. State files of this machine's runs whose
  // directory is gone are deleted.
  Engine(Model model, const Config& config, const World& world, const Options& options);
  ~Engine();
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;

  // One optimizer step over Config::accumulation_steps micro-batches. Its updates may still be
  // under way on return (`strata.overlap_update`). Throws where anything behind it failed, also
  // what the step before left under way; the engine is then unusable.
  StepResult train_step(std::span<const Batch> micro_batches);

  // Around compute of one's own (Options::own_compute); units count from 0 as the model's layers.
  // On the host device the caller computes on any threads of its own, where it is; on a device with
  // streams on stream(), whose later work finds what a verb gives. All throw ConfigError for a call
  // out of turn.
  //
  // gather() blocks until a unit's parameters are there. The order of a step's gathers is recorded,
  // and the next step's units are brought ahead by it; another order is as right, and recorded
  // anew.
  UnitLease gather(int unit);
  // Where a unit's gradients of the micro-batch go, as its parameters are declared: every element
  // of those that are trainable is written, by the mean loss times loss_scale(). Frozen ones have
  // null views. They hold until reduce().
  std::span<const TensorView> gradients(int unit);
  // They are complete; what they were in is the engine's again.
  void reduce(int unit);
  // Updates the parameters, once each unit was reduced Config::accumulation_steps times. `loss` is
  // this rank's mean, and comes out as the mean over ranks.
  StepResult step(double loss);
  double loss_scale() const;  // 1 but in fp16
  void* stream() const;       // cudaStream_t; null on the host device

  // Mean loss over the batches' targets, of all ranks; changes nothing. Every rank gives as many
  // batches.
  double evaluate(std::span<const Batch> micro_batches);

  // Scores (logits) of a batch of this rank's own, (B*T, V) row by row; V is
  // Model::target_classes(). Changes nothing. Throws ConfigError for a model without scores.
  std::vector<float> scores(const Batch& batch);
  // Scores, one for each token of the vocabulary, of what follows `tokens`, 1 to a row of them;
  // ranks give the same ones. Throws ConfigError for others, and for a model without scores.
  std::vector<float> next_token_scores(std::span<const int32_t> tokens);

  // Hash of the training state (master, moments, parameters, loss scale, step) in logical order:
  // independent of placement, stage and world size. 32 hexadecimal digits.
  std::string digest();

  // Copies one parameter's state, as fp32, whatever tier holds it. `kind` is param, master,
  // exp_avg, exp_avg_sq, or grad (as accumulated in the last step: a sum, times its loss scale).
  // Throws ConfigError for a name the model lacks, or a kind that this parameter does not have.
  std::vector<float> read_parameter(std::string_view name, StateKind kind);
  // Sets a parameter: master and 16-bit copy from `values`, moments to zero. Ranks give the same.
  // Throws ConfigError also where each step is recoverable, and this would be a change between two.
  void write_parameter(std::string_view name, std::span<const float> values);

  // Writes a checkpoint of the state after the last step: a directory that is there as a whole or
  // not at all, in place of one of that name (engine/checkpoint/manifest.h says what is in it). All
  // ranks see the directory. Throws IoError, on every rank, where it cannot be written; the run can
  // go on then.
  void save_checkpoint(const std::string& path);
  // The same under the run's directory, as checkpoints/step-N and checkpoints/latest; of those
  // there, the newest `keep` stay, 0 for all. Returns its path. Throws ConfigError without a run
  // directory.
  std::string save_checkpoint(int keep = 0);
  // As save_checkpoint(keep), but what became of it, a failure too, is told by a later StepResult
  // or await_checkpoints(). Where each step is recoverable it returns as soon as the checkpoint is
  // begun: the state is copied from its slots while training goes on. Without
  // `strata.snapshot_slots` the second step from here waits for the copy. One at a time: waits for
  // the one before. One that is not over is lost with the engine.
  void begin_checkpoint(int keep = 0);
  // Waits for the checkpoint begun last. What has not been told yet, in the order of beginning.
  std::vector<CheckpointOutcome> await_checkpoints();
  // Where the caller's data goes on after the next step; counts from that step on. 0 at first.
  void set_data_position(int64_t position);
  // That of the last step, or the one that the state came with.
  int64_t data_position() const;
  // Deletes the files from which a killed run would recover its last step: for the end of training,
  // when a checkpoint has all of it. This engine still reads them.
  void remove_state_files();

  int64_t steps_done() const;
  const PlanSummary& plan() const;
  // One line each: device, I/O engine in force, recovery mode.
  std::vector<std::string> description() const;
  // Waits for the last step's updates and their writes to nvme, which otherwise run on under the
  // next step. Throws what failed of them. evaluate(), digest() and write_trace() do so too.
  void settle();
  // The trace as kept so far, in the Chrome format that Perfetto opens. Throws IoError.
  void write_trace(const std::string& path);

 private:
  friend struct EngineTestAccess;
  explicit Engine(std::unique_ptr<engine::Runtime> runtime);

  std::unique_ptr<engine::Runtime> runtime_;
};

}  // namespace strata
