#include "engine/plan/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "engine/plan/advice.h"
#include "engine/plan/check.h"
#include "engine/plan/host_share.h"
#include "engine/plan/sub_group_order.h"
#include "engine/plan/traffic.h"
#include "offload/slot_store.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

constexpr uint64_t kPieceAlignBytes = 4096;
constexpr int64_t kTransferGrains = 4 * offload::kTransferAlignGrains;  // 4 MiB of fp32
// What the process grows by on top of its reservations while it trains: code generated for matrix
// products, thread stacks, queues, the pages of libraries that are first used then.
constexpr uint64_t kGrowthBytes = uint64_t{96} << 20;

uint64_t align_up(uint64_t bytes) {
  return (bytes + kPieceAlignBytes - 1) / kPieceAlignBytes * kPieceAlignBytes;
}

int64_t sum(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

const PlanInput& checked(const PlanInput& input) {
  check(input);
  return input;
}

class Planner {
 public:
  explicit Planner(const PlanInput& input)
      : input_(checked(input)),
        element_bytes_(size_bytes(input.config.dtype)),
        plan_{.summary = {},
              .micro_batch = input.micro_batch,
              .layout = ModelLayout(input.model, input.world.rank, input.world.size),
              .segments = {},
              .state = {},
              .frozen_tier = Tier::device,
              .staging = {},
              .activations = {},
              .step = {},
              .evaluate = {},
              .update_traffic = {},
              .reduced_bytes = 0,
              .reduce_scratch_bytes = 0,
              .landing_bytes = 0,
              .transfer_grains = 0,
              .order_of_use = {},
              .order_of_completion = {}} {}

  Plan make() {
    plan_.segments = segment_table(plan_.layout);
    place_state();
    measure_layers();
    set_budgets();
    // The least that trains first; then what makes it faster, as far as the budgets go.
    rebuild();
    fill_host();
    rebuild();
    if (input_.config.recompute == RecomputeChoice::automatic) keep_saved_activations();
    return std::move(plan_);
  }

 private:
  using PerUnit = ActivationLayout::PerUnit;

  const std::vector<Unit>& units() const { return plan_.layout.units(); }
  uint64_t& needed(Tier tier) { return plan_.summary.needed_bytes[static_cast<size_t>(tier)]; }
  uint64_t& budget(Tier tier) { return plan_.summary.budget_bytes[static_cast<size_t>(tier)]; }

  void place_state() {
    const Config& config = input_.config;
    const int64_t grains = plan_.layout.trainable_grains();
    offload::TrainingStateSpec& state = plan_.state;
    state.param = offload::Placement(config.param, grains);
    for (size_t i = 0; i < kOptimizerKindCount; ++i) {
      state.optimizer_state[i] =
          offload::Placement(config.optimizer_state[i], grains).pinned_until(host_.pinned_until);
    }
    const int64_t updated_on_device = state.optimizer_state[0].range(Tier::device).end;
    if (updated_on_device > state.param.range(Tier::device).end) {
      throw ConfigError(
          "optimizer state on the device needs its parameters there too: set "
          "zero_optimization.offload_param.device to \"none\", or offload the optimizer as well");
    }
    const double device_part =
        grains == 0 ? 0.0 : static_cast<double>(updated_on_device) / static_cast<double>(grains);
    state.grad = offload::Placement({device_part, 1.0 - device_part, 0.0}, grains);
    state.param_dtype = config.dtype;
    state.codecs = codecs_of(config);
    // Sums over ranks and micro-batches are fp32; one micro-batch's on one rank is kept as it is.
    state.grad_dtype =
        config.accumulation_steps == 1 && input_.world.size == 1 ? config.dtype : DType::fp32;
    state.slots = config.slots;
    state.sub_groups = offload::cut_sub_groups(config.sub_group_numel / kGrainNumel,
                                               {state.param, state.grad, state.optimizer_state});
    plan_.frozen_tier = config.param.device == 1.0 ? Tier::device : Tier::host;
    plan_.staging = offload::staging_layout(state, staging_buffers());
    plan_.transfer_grains = std::min(
        kTransferGrains, round_up(std::max<int64_t>(grains, 1), offload::kTransferAlignGrains));
  }

  // No more than there are sub-groups to pass through, unless a person says how many.
  int staging_buffers() const {
    if (input_.config.staging_buffers != Config::kAutoStagingBuffers) return host_.staging_buffers;
    const auto& groups = plan_.state.sub_groups;
    const auto staged = std::count_if(groups.begin(), groups.end(), [this](const auto& group) {
      return offload::needs_staging(plan_.state, group);
    });
    return std::min(host_.staging_buffers, static_cast<int>(staged));
  }

  // A unit is gathered unless all of it lies on the device already.
  bool is_gathered(const Unit& unit) const {
    const GrainRange shard = unit.trainable.shard();
    const GrainRange on_device = plan_.state.param.range(Tier::device);
    const bool trainable_there = shard.empty() || shard.end <= on_device.end;
    const bool frozen_there = unit.frozen.numel == 0 || plan_.frozen_tier == Tier::device;
    const bool sharded = input_.world.size > 1 && unit.numel() > 0;
    return sharded || !trainable_there || !frozen_there;
  }

  void measure_layers() {
    ActivationLayout& activations = plan_.activations;
    uint64_t widest = 0;
    for (const auto& layer : input_.model.layers) {
      PerUnit unit;
      unit.footprint = layer->footprint(input_.ops, input_.micro_batch, input_.config.dtype);
      unit.output_channels = layer->output_channels();
      unit.output_offset = activations.boundary_bytes;
      const uint64_t output_bytes =
          align_up(static_cast<uint64_t>(input_.micro_batch.tokens() * unit.output_channels) *
                   element_bytes_);
      activations.boundary_bytes += output_bytes;
      widest = std::max(widest, output_bytes);
      activations.workspace_bytes =
          std::max<uint64_t>(activations.workspace_bytes, unit.footprint.workspace_bytes);
      activations.units.push_back(unit);
    }
    activations.output_grad_bytes = widest;
  }

  void set_budgets() {
    const auto choose = [](uint64_t asked, uint64_t available) {
      return asked == 0 ? available : asked;
    };
    budget(Tier::device) = choose(input_.config.device_memory, input_.machine.device_bytes);
    budget(Tier::host) = choose(input_.config.host_memory, input_.machine.host_bytes);
    budget(Tier::nvme) = input_.machine.disk_bytes;
  }

  void take(const HostShare& share) {
    host_ = share;
    place_state();
    reserve();
  }

  // Staging buffers that help go before state that stays.
  void fill_host() {
    const Config& config = input_.config;
    const TryHostShare holds = [this](const HostShare& share) {
      take(share);
      return needed(Tier::host) <= budget(Tier::host);
    };
    const HostShare share = choose_staging(config, holds);
    take(share);
    const offload::TrainingStateSpec placed = plan_.state;
    check_pinning(config, placed);
    if (config.pin_state != PinChoice::never && config.host_memory > 0) {
      take(choose_pinned(share, plan_.layout.trainable_grains(), holds));
    }
    check_speculation(config, placed, plan_.state);
  }

  void keep_saved_activations() {
    auto& per_unit = plan_.activations.units;
    for (size_t u = per_unit.size() - 1; u-- > 0;) {
      per_unit[u].keeps_saved = true;
      rebuild();
      if (needed(Tier::device) <= budget(Tier::device)) continue;
      per_unit[u].keeps_saved = false;
      rebuild();
      return;
    }
  }

  // Everything that follows from which units keep their activations.
  void rebuild() {
    place_saved();
    make_programs();
    reserve();
    plan_.summary.evaluate_traffic = evaluate_traffic(plan_);
    plan_.update_traffic = update_traffic(plan_);
    plan_.summary.step_traffic = step_traffic(plan_, input_.config.accumulation_steps);
    summarize();
  }

  // Kept units have a place each; the others, and the last, share one.
  void place_saved() {
    ActivationLayout& activations = plan_.activations;
    uint64_t shared = 0;
    for (const PerUnit& unit : activations.units) {
      if (!unit.keeps_saved) {
        shared = std::max<uint64_t>(shared, align_up(unit.footprint.saved_bytes));
      }
    }
    activations.saved_bytes = shared;
    for (PerUnit& unit : activations.units) {
      unit.saved_offset = 0;
      if (!unit.keeps_saved) continue;
      unit.saved_offset = activations.saved_bytes;
      activations.saved_bytes += align_up(unit.footprint.saved_bytes);
    }
  }

  void make_programs() {
    ProgramInput input{.layout = plan_.layout,
                       .gathered = {},
                       .keeps_saved = {},
                       .micro_batches = static_cast<int>(input_.config.accumulation_steps),
                       .training = true,
                       .overlap = input_.config.overlap};
    for (size_t u = 0; u < units().size(); ++u) {
      input.gathered.push_back(is_gathered(units()[u]));
      input.keeps_saved.push_back(plan_.activations.units[u].keeps_saved);
    }
    plan_.step = plain_program(input);
    const OrderInput order{plan_.layout, plan_.state.sub_groups, plan_.step};
    plan_.order_of_use = order_of_use(order);
    plan_.order_of_completion = order_of_completion(order);
    input.training = false;
    input.micro_batches = 1;
    plan_.evaluate = plain_program(input);
    // Evaluation runs in the same window, and may put other units into its slots.
    const auto& evaluate = plan_.evaluate.window_numel;
    auto& window = plan_.step.window_numel;
    window.resize(std::max(window.size(), evaluate.size()), 0);
    for (size_t slot = 0; slot < evaluate.size(); ++slot) {
      window[slot] = std::max(window[slot], evaluate[slot]);
    }
  }

  void add(Tier tier, StateKind kind, const char* name, uint64_t bytes) {
    if (bytes == 0) return;
    plan_.summary.reservations.push_back({tier, kind, name, bytes});
  }

  void reserve() {
    PlanSummary& summary = plan_.summary;
    const ActivationLayout& activations = plan_.activations;
    const auto micro_batches = static_cast<uint64_t>(input_.config.accumulation_steps);
    const uint64_t token_bytes =
        micro_batches * static_cast<uint64_t>(input_.micro_batch.tokens()) * 2 * sizeof(int32_t);
    const auto device_grains = static_cast<uint64_t>(plan_.state.grad.range(Tier::device).grains());
    plan_.reduced_bytes = reduced_bytes();
    plan_.reduce_scratch_bytes = reduce_scratch_bytes();
    plan_.landing_bytes = landing_bytes();

    summary.reservations = offload::reservations_for(plan_.state);
    for (const Reservation& r : offload::reservations_for(plan_.staging)) {
      summary.reservations.push_back(r);
    }
    const auto frozen_bytes =
        static_cast<uint64_t>(plan_.layout.frozen_grains() * kGrainNumel) * element_bytes_;
    add(plan_.frozen_tier, StateKind::param, reserved::kFrozen, frozen_bytes);
    add(Tier::device, StateKind::param, reserved::kWindow,
        static_cast<uint64_t>(sum(plan_.step.window_numel)) * element_bytes_);
    add(Tier::device, StateKind::grad, reserved::kLocalGrads,
        static_cast<uint64_t>(sum(plan_.step.grad_slot_numel)) * element_bytes_);
    add(Tier::device, StateKind::grad, reserved::kReducedGrads, 2 * plan_.reduced_bytes);
    add(Tier::device, StateKind::grad, reserved::kReduceScratch, plan_.reduce_scratch_bytes);
    add(Tier::device, StateKind::activation, reserved::kBoundary, activations.boundary_bytes);
    add(Tier::device, StateKind::activation, reserved::kOutputGrads,
        2 * activations.output_grad_bytes);
    add(Tier::device, StateKind::activation, reserved::kSaved, activations.saved_bytes);
    add(Tier::device, StateKind::activation, reserved::kWorkspace, activations.workspace_bytes);
    add(Tier::device, StateKind::other, reserved::kTokens, token_bytes);
    add(Tier::device, StateKind::other, reserved::kLoss, micro_batches * sizeof(double));
    add(Tier::device, StateKind::other, reserved::kDeviceGrainSums, device_grains * sizeof(double));
    add(Tier::host, StateKind::other, reserved::kTokenStaging, token_bytes);
    add(Tier::host, StateKind::other, reserved::kLossReadback, micro_batches * sizeof(double));
    add(Tier::host, StateKind::other, reserved::kScoresReadback,
        static_cast<uint64_t>(input_.model.vocab_size) * element_bytes_);
    add(Tier::host, StateKind::grad, reserved::kLanding, 2 * plan_.landing_bytes);
    add(Tier::host, StateKind::other, reserved::kGrainSums,
        static_cast<uint64_t>(plan_.layout.trainable_grains()) * sizeof(double));
    add(Tier::host, StateKind::other, reserved::kTransfer,
        static_cast<uint64_t>(2 * plan_.transfer_grains * kGrainNumel) * sizeof(float));
    if (plan_.commits()) {
      const uint64_t journal = offload::SlotStore::journal_bytes(plan_.state.slot_layout());
      add(Tier::host, StateKind::other, reserved::kJournalRecord, journal / 2);
      add(Tier::nvme, StateKind::other, reserved::kJournalFile, journal);
    }
    summary.needed_bytes = {};
    for (const Reservation& r : summary.reservations) needed(r.tier) += r.bytes;
  }

  int64_t largest_shard_numel() const {
    int64_t largest = 0;
    for (const Unit& unit : units()) largest = std::max(largest, unit.trainable.shard_numel);
    return largest;
  }

  // A unit's gradient summed over ranks, this rank's shard of it, in fp32.
  uint64_t reduced_bytes() const {
    if (input_.world.size == 1) return 0;
    return static_cast<uint64_t>(largest_shard_numel()) * sizeof(float);
  }

  int64_t reduce_bucket_numel() const {
    if (input_.config.reduce_bucket_numel != Config::kAutoReduceBucket) {
      return input_.config.reduce_bucket_numel;
    }
    int64_t widest = 0;
    for (const PerUnit& unit : plan_.activations.units) {
      widest = std::max(widest, unit.output_channels);
    }
    return widest * widest;
  }

  // What peers send of a unit's gradient at a time: a piece of a shard from each.
  uint64_t reduce_scratch_bytes() const {
    const int64_t piece = reduce_bucket_numel() / input_.world.size;
    const int64_t whole_grains = std::max<int64_t>(piece / kGrainNumel, 1) * kGrainNumel;
    return static_cast<uint64_t>((input_.world.size - 1) *
                                 std::min(whole_grains, largest_shard_numel())) *
           element_bytes_;
  }

  // The largest part of a unit's gradient that lands on the host.
  uint64_t landing_bytes() const {
    uint64_t largest = 0;
    for (const Unit& unit : units()) largest = std::max(largest, host_grad_bytes(plan_, unit));
    return largest;
  }

  void summarize() {
    PlanSummary& summary = plan_.summary;
    summary.rank = input_.world.rank;
    summary.ranks = input_.world.size;
    summary.parameters = plan_.layout.parameter_count();
    summary.codecs = plan_.state.codecs;
    const auto grains = static_cast<uint64_t>(plan_.layout.trainable_grains());
    summary.training_state_bytes = 0;
    for (StateKind kind : {StateKind::param, StateKind::grad, StateKind::master, StateKind::exp_avg,
                           StateKind::exp_avg_sq}) {
      summary.training_state_bytes += grains * static_cast<uint64_t>(plan_.state.grain_bytes(kind));
    }
    summary.staging_buffers = plan_.staging.buffers;
    summary.optimizer_state_bytes = {};
    for (Tier tier : kTiers) {
      for (StateKind kind : kOptimizerKinds) {
        summary.optimizer_state_bytes[static_cast<size_t>(tier)] += static_cast<uint64_t>(
            plan_.state.placement(kind).range(tier).grains() * plan_.state.grain_bytes(kind));
      }
    }
    summary.process_overhead_bytes = input_.machine.process_bytes + kGrowthBytes;
    summary.sub_groups = static_cast<int64_t>(plan_.state.sub_groups.size());
    summary.gather_window_units = static_cast<int64_t>(plan_.step.window_numel.size());
    const auto& actions = plan_.step.actions;
    summary.recomputed_units = std::count_if(actions.begin(), actions.end(), [](const Action& a) {
      return a.recompute && a.micro_batch == 0;
    });
  }

  const PlanInput& input_;
  const uint64_t element_bytes_;
  HostShare host_;
  Plan plan_;
};

}  // namespace

Plan make_plan_unchecked(const PlanInput& input) { return Planner(input).make(); }

Plan make_plan(const PlanInput& input) {
  Plan plan = make_plan_unchecked(input);
  const std::optional<Tier> tier = plan.summary.over_budget();
  if (tier) throw out_of_budget(input, plan.summary, *tier);
  return plan;
}

}  // namespace strata::engine
