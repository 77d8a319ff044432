// What a run is asked to do: DeepSpeed's ds_config.json, and Strata's own keys under "strata".
//
// One option table (engine/config/option_table.h) makes the parser, its errors, --help and
// docs/configuration.md. Values here are checked and complete: every "auto" resolved, every
// default filled in, every cross-check done.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "strata/codec.h"
#include "strata/dtype.h"
#include "strata/optimizer.h"
#include "strata/tier.h"

namespace strata {

// Parts of a state kind's grains that live in each tier; they add up to 1. In shard order the
// device's part comes first, then the host's, then nvme's.
struct TierFractions {
  double device = 0;
  double host = 0;
  double nvme = 0;
};

struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::adamw;
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double momentum = 0.0;
  double weight_decay = 0.0;
};

// DeepSpeed's WarmupLR, WarmupDecayLR and WarmupCosineLR. The cosine's rates are parts of
// OptimizerConfig::lr; the others' are their own.
struct WarmupConfig {
  double min_lr = 0.0;
  double max_lr = 1e-3;
  double min_ratio = 0.0;
  double cos_min_ratio = 1e-4;
  int64_t num_steps = 1000;
  bool logarithmic = true;      // false: linear
  int64_t total_num_steps = 0;  // at whose end the decay is complete
};

// DeepSpeed's OneCycle: up, down, then a decay without end.
struct OneCycleConfig {
  double min_lr = 0.0;
  double max_lr = 0.0;
  int64_t first_steps = 2000;
  int64_t second_steps = 2000;
  int64_t first_stairs = 0;  // 0: smooth
  int64_t second_stairs = 0;
  int64_t decay_steps = 0;  // the decay's unit of time; 0: no decay
  double lr_decay_rate = 0.0;
  bool cycles_beta1 = true;  // against the learning rate; beta2 is then 0.99
  double min_beta1 = 0.8;
  double max_beta1 = 0.9;
  double beta1_decay_rate = 0.0;
};

enum class ScheduleKind : uint8_t { constant, warmup, warmup_decay, warmup_cosine, one_cycle };

// How learning rate and momentum go with the steps (engine/runtime/lr_schedule.h).
struct ScheduleConfig {
  ScheduleKind kind = ScheduleKind::constant;  // OptimizerConfig's
  WarmupConfig warmup;                         // of the three with that name
  OneCycleConfig one_cycle;
};

// Parameters with an optimizer setting of their own. A parameter belongs to the first group that
// has a pattern for its name; without one it has the optimizer's weight decay, if its layer says so
// (Parameter::weight_decay), and the schedule's learning rate.
struct ParameterGroup {
  std::vector<std::string> match;      // shell patterns, as fnmatch(3) reads them
  std::optional<double> weight_decay;  // none: as without a group
  double lr_scale = 1.0;               // times the schedule's learning rate
};

// The scale of fp16's gradients, by DeepSpeed's rules (engine/runtime/loss_scaler.h).
struct LossScaleConfig {
  double constant = 0;                  // 0: it follows overflows, as the rest says
  int initial_power = 16;               // starts at 2^initial_power
  int64_t window = 1000;                // steps without overflow before it doubles
  int64_t hysteresis = 2;               // overflows before it halves
  bool consecutive_hysteresis = false;  // a step without overflow starts their count again
  int64_t min_scale = 1;

  bool dynamic() const { return constant == 0; }
};

enum class DeviceChoice : uint8_t { automatic, host, cuda };
enum class IoChoice : uint8_t { automatic, io_uring, threads };
enum class DirectChoice : uint8_t { automatic, required, off };
// How often the activations inside a unit are computed a second time in backward.
enum class RecomputeChoice : uint8_t {
  automatic,  // keep as many units' activations as the device budget holds
  always,     // every unit but the last
};

// Where the threads of the update on the host may run.
enum class CpuBindingChoice : uint8_t {
  automatic,  // each on its own part of this rank's CPUs, unless OpenMP was told where
  none,
};

// Whether sub-groups on nvme are updated before the step's norm is known.
enum class SpeculateChoice : uint8_t {
  automatic,  // with two slots, while few steps are clipped or skipped
  never,
  always,  // however many are
};

// Whether state placed on nvme stays in pinned host memory, as far as the host budget goes.
enum class PinChoice : uint8_t {
  automatic,  // where some of it is there, and a host budget is given
  never,
  always,  // and some of it has to be there
};

// What a killed run with a run directory goes on from.
enum class RecoveryChoice : uint8_t {
  automatic,   // the step it was in, where all of the optimizer's state has two slots on nvme
  step,        // that, or a ConfigError
  checkpoint,  // its last checkpoint
};

// In which order micro-batches go through units.
enum class OrderChoice : uint8_t {
  automatic,  // whichever moves what it has to in less time
  plain,      // each forward through all units and back, then the next
  vertical,   // all of them through a unit before the next unit
};

// Which sums make a gradient of several micro-batches on several ranks. Each has bits of its own.
enum class AccumulateChoice : uint8_t {
  reduced,  // over ranks first, then over micro-batches
  local,    // over micro-batches first, then once over ranks
};

// Who adds up gradients over ranks. Each has bits of its own.
enum class ReductionChoice : uint8_t {
  exact,  // Strata, in fp32, rank 0 first
  fast,   // the GPUs' network, in the gradient's dtype and an order of its own
};

struct Config {
  // Batch: a step takes world_size * micro_batch * accumulation_steps rows.
  int world_size = 1;  // ranks that it was divided among
  int64_t micro_batch = 1;
  int64_t accumulation_steps = 1;

  DType dtype = DType::fp32;     // of parameters, activations and local gradients: any float
  LossScaleConfig loss_scale;    // with fp16 alone
  double gradient_clipping = 0;  // 0: off
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  std::vector<ParameterGroup> parameter_groups;

  // ZeRO and placement.
  int stage = 3;
  AccumulateChoice accumulate = AccumulateChoice::reduced;
  ReductionChoice reduction = ReductionChoice::exact;  // fast: with several ranks, on GPUs alone
  int64_t sub_group_numel = 0;                         // a multiple of the grain
  // Elements of a unit's gradient reduced over ranks at a time.
  int64_t reduce_bucket_numel = 500'000'000;
  static constexpr int64_t kAutoReduceBucket = 0;  // the widest layer's channels, squared
  // With stage 3: units of parameters no larger than this stay gathered; parameters gathered at a
  // time, and of those ahead of their use.
  static constexpr int64_t kAutoNumel = -1;  // by the widest layer's channels
  int64_t persistent_numel = 0;
  int64_t max_live_numel = 1'000'000'000;
  int64_t prefetch_numel = 50'000'000;
  TierFractions param;
  TierFractions grad = {0, 1, 0};  // of those updated on the host; the device's stay there
  // Of what lies between units until backward, by units: the first ones wait longest, on nvme.
  TierFractions activation = {1, 0, 0};
  std::array<TierFractions, kOptimizerKindCount> optimizer_state;  // in kOptimizerKinds' order
  // How state is kept between steps: the master in fp32 or split16, moments in fp32, bf16 or int8.
  Codec master_codec = Codec::fp32;
  Codec moment_codec = Codec::fp32;
  // Of the state placed on nvme, as much as host_memory holds stays pinned in host memory.
  PinChoice pin_state = PinChoice::never;
  std::vector<std::string> nvme_paths;  // directories; empty when nothing lives on nvme
  // How much goes to each of several nvme_paths; empty: by their bandwidth, measured at start.
  std::vector<uint32_t> nvme_weights;

  // Budgets in bytes; 0: as much as the plan needs and the machine has.
  uint64_t device_memory = 0;
  uint64_t host_memory = 0;

  // How it runs. None of these changes the training state.
  DeviceChoice device = DeviceChoice::automatic;
  int compute_threads = 0;    // a rank's threads for matrix products; 0: all cores
  int optimizer_threads = 0;  // a rank's threads for the update; 0: all cores
  CpuBindingChoice cpu_binding = CpuBindingChoice::automatic;  // of the update's threads
  int staging_buffers = kAutoStagingBuffers;     // sub-groups under way between nvme and the update
  static constexpr int kAutoStagingBuffers = 0;  // as many as help and the host budget holds
  OrderChoice order = OrderChoice::automatic;
  int64_t tiles = 1;  // that a model's wide layers are divided into (Model::tiled)
  static constexpr int64_t kMostTiles = 256;
  bool overlap = true;         // false: one thing at a time, for measuring and debugging
  bool overlap_update = true;  // with overlap: updates run on under the next forward pass
  SpeculateChoice speculate = SpeculateChoice::automatic;
  RecomputeChoice recompute = RecomputeChoice::automatic;
  IoChoice io_engine = IoChoice::automatic;
  DirectChoice io_direct = DirectChoice::automatic;
  uint32_t io_block_bytes = 1 << 20;
  uint32_t io_queue_depth = 32;
  int io_threads = 8;             // workers of the thread engine
  int slots = 1;                  // places on disk a sub-group; 2: the step before survives on disk
  int snapshot_slots = 0;         // more of them, for a checkpoint that is copied beside steps
  double checkpoint_share = 0.1;  // of the time, that such a copy reads and writes
  RecoveryChoice recovery = RecoveryChoice::automatic;
  bool checksums = true;        // state read from nvme is checked against what was written
  double comm_timeout_s = 600;  // how long a rank waits for a peer that has not come
  double watchdog_s = 300;  // how long something may stand still before the run ends; 0: for ever

  uint64_t seed = 1;

  // As read, for checkpoints to keep; empty for a configuration made by hand.
  std::string text;
  // Keys of the input that have no effect here, for the start-up lines.
  std::vector<std::string> no_effect_keys;

  // Reads and checks a file or text for a world of `world_size` ranks (World::size), among which
  // the batch is divided. Throws ConfigError: one sentence that names the source, the key (or line
  // and column) and what to change.
  static Config from_file(const std::string& path, int world_size);
  static Config from_json(std::string_view text, const std::string& source, int world_size);
};

// The codec of each optimizer kind, in kOptimizerKinds' order; none for what the optimizer does not
// keep.
std::array<Codec, kOptimizerKindCount> codecs_of(const Config& config);

// The option table as Markdown, for docs/configuration.md.
std::string configuration_reference();

}  // namespace strata
