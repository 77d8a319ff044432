#include "engine/plan/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/plan/advice.h"
#include "engine/plan/batch_views.h"
#include "engine/plan/check.h"
#include "engine/plan/host_share.h"
#include "engine/plan/reservations.h"
#include "engine/plan/state_placement.h"
#include "engine/plan/step_time.h"
#include "engine/plan/sub_group_order.h"
#include "engine/plan/traffic.h"
#include "engine/zero/parameter_setting.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

constexpr int64_t kTransferGrains = 4 * offload::kTransferAlignGrains;  // 4 MiB of fp32
// What the process grows by on top of its reservations while it trains: code generated for matrix
// products, thread stacks, queues, the pages of libraries that are first used then.
constexpr uint64_t kGrowthBytes = uint64_t{96} << 20;

const PlanInput& checked(const PlanInput& input) {
  check(input);
  return input;
}

class Planner {
 public:
  Planner(const PlanInput& input, UnitOrder order)
      : input_(checked(input)),
        element_bytes_(size_bytes(input.config.dtype)),
        plan_(ModelLayout(input.model, {input.world.rank, input.world.size, input.config.stage,
                                        persistent_numel(input)})) {
    plan_.micro_batch = input.micro_batch;
    plan_.micro_batches = static_cast<int>(input.config.accumulation_steps);
    plan_.batch_bytes =
        BatchViews(nullptr, input.model, input.micro_batch, input.config.dtype).bytes;
    plan_.order = order;
    plan_.sums = gradient_sums(input, order);
  }

  Plan make() {
    check_parameter_groups(input_.model, input_.config);
    plan_.segments = segment_table(plan_.layout, input_.config);
    place();
    measure_layers();
    set_budgets();
    // The least that trains first; then what makes it faster, as far as the budgets go.
    rebuild();
    fill_host();
    rebuild();
    gather_further_ahead();
    if (input_.config.recompute == RecomputeChoice::automatic) keep_saved_activations();
    return std::move(plan_);
  }

 private:
  using PerUnit = ActivationLayout::PerUnit;

  const std::vector<Unit>& units() const { return plan_.layout.units(); }
  uint64_t& needed(Tier tier) { return plan_.summary.needed_bytes[static_cast<size_t>(tier)]; }
  uint64_t& budget(Tier tier) { return plan_.summary.budget_bytes[static_cast<size_t>(tier)]; }

  // "auto" as Hugging Face's Trainer fills it in.
  static int64_t persistent_numel(const PlanInput& input) {
    const int64_t asked = input.config.persistent_numel;
    return asked == Config::kAutoNumel ? 10 * widest_channels(input.model) : asked;
  }

  // What adds up over micro-batches before it lands.
  static GradientSums gradient_sums(const PlanInput& input, UnitOrder order) {
    if (input.config.accumulation_steps == 1) return GradientSums::none;
    const bool is_local =
        input.config.accumulate == AccumulateChoice::local && input.world.size > 1;
    if (is_local) return GradientSums::whole;
    return order == UnitOrder::vertical ? GradientSums::shards : GradientSums::none;
  }

  void place() {
    plan_.state = place_state(input_.config, plan_.layout, host_.pinned_until);
    plan_.state.slots += input_.config.snapshot_slots;
    plan_.staging = offload::staging_layout(plan_.state, staging_buffers());
    const int64_t grains = std::max<int64_t>(plan_.layout.trainable_grains(), 1);
    plan_.transfer_grains =
        std::min(kTransferGrains, round_up(grains, offload::kTransferAlignGrains));
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

  ParameterAccess access(const Unit& unit) const {
    const bool divided = unit.trainable.shards > 1 && unit.trainable.numel > 0;
    if (unit.whole) return divided ? ParameterAccess::completed : ParameterAccess::in_place;
    const bool sharded = input_.world.size > 1 && unit.numel() > 0;
    const auto is_away = [](const FlatBuffer& flat, const offload::Placement& placement) {
      return flat.shard().end > placement.range(Tier::device).end && !flat.shard().empty();
    };
    const bool away =
        is_away(unit.trainable, plan_.state.param) || is_away(unit.frozen, plan_.state.frozen);
    return sharded || away ? ParameterAccess::gathered : ParameterAccess::in_place;
  }

  void measure_layers() {
    ActivationLayout& activations = plan_.activations;
    uint64_t widest = 0;
    for (const auto& layer : input_.model.layers) {
      PerUnit unit;
      unit.footprint = layer->footprint(input_.ops, input_.micro_batch, input_.config.dtype);
      unit.output_channels = layer->output_channels();
      unit.output_bytes =
          whole_pages(static_cast<uint64_t>(input_.micro_batch.tokens() * unit.output_channels) *
                      element_bytes_);
      widest = std::max(widest, unit.output_bytes);
      activations.workspace_bytes =
          std::max<uint64_t>(activations.workspace_bytes, unit.footprint.workspace_bytes);
      activations.units.push_back(unit);
    }
    activations.output_grad_bytes = widest;
    place_checkpoints();
  }

  // The last layer's input is read again at once. Of the others' the first wait longest: they go to
  // nvme, the next ones to the host. Of tiles it is the last one's output that all have written.
  void place_checkpoints() {
    ActivationLayout& activations = plan_.activations;
    const TierFractions& parts = input_.config.activation;
    const int64_t count = int64_t{units().back().layer} - 1;
    const auto micro_batches =
        static_cast<uint64_t>(plan_.order == UnitOrder::vertical ? plan_.micro_batches : 1);
    for (size_t u = 0; u < units().size(); ++u) {
      const Unit& of = units()[u];
      if (of.layer >= count) break;
      if (of.last_tile != static_cast<int>(u)) continue;
      PerUnit& unit = activations.units[u];
      const double before = (static_cast<double>(of.layer) + 0.5) / static_cast<double>(count);
      unit.checkpoint_tier = before < parts.nvme                ? Tier::nvme
                             : before < parts.nvme + parts.host ? Tier::host
                                                                : Tier::device;
      if (unit.checkpoint_tier == Tier::device) continue;
      uint64_t& stored = activations.stored_bytes[static_cast<size_t>(unit.checkpoint_tier)];
      unit.stored_offset = stored;
      unit.stored_stride = micro_batches > 1 ? unit.output_bytes : 0;
      stored += unit.output_bytes * micro_batches;
    }
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
    place();
    reserve(input_, host_, plan_);
  }

  // Staging buffers that help go before state that stays.
  void fill_host() {
    const Config& config = input_.config;
    const TryHostShare holds = [this](const HostShare& share) {
      take(share);
      return needed(Tier::host) <= budget(Tier::host);
    };
    const HostShare share = choose_staging(config, choose_transfers(holds), holds);
    take(share);
    const offload::TrainingStateSpec placed = plan_.state;
    check_pinning(config, placed);
    if (config.pin_state != PinChoice::never && config.host_memory > 0) {
      take(choose_pinned(share, plan_.layout.trainable_grains(), holds));
    }
    check_speculation(config, placed, plan_.state);
    choose_recovery();
  }

  void choose_recovery() {
    const bool has_directory = input_.has_run_directory;
    PlanSummary& summary = plan_.summary;
    summary.step_recovery_takes = step_recovery_takes(input_, plan_.state);
    plan_.recovers_steps = has_directory && plan_.commits() &&
                           summary.step_recovery_takes.empty() &&
                           input_.config.recovery != RecoveryChoice::checkpoint;
    summary.recovery = plan_.recovers_steps ? "step" : has_directory ? "checkpoint" : "none";
    if (input_.config.snapshot_slots == 0 || plan_.recovers_steps) return;
    const std::string missing = !summary.step_recovery_takes.empty() ? summary.step_recovery_takes
                                : has_directory ? "strata.recovery \"auto\" or \"step\""
                                                : "a run directory (--output)";
    throw ConfigError(
        fmt::format("strata.snapshot_slots is for checkpoints beside the steps of a run that can "
                    "recover each one, which takes {}: leave it out otherwise",
                    missing));
  }

  // A second unit ahead hides a shard that is late.
  void gather_further_ahead() {
    constexpr int kMostUnitsAhead = 2;
    if (!input_.config.overlap || plan_.step.window_numel.empty()) return;
    units_ahead_ = kMostUnitsAhead;
    rebuild();
    if (needed(Tier::device) <= budget(Tier::device)) return;
    units_ahead_ = 1;
    rebuild();
  }

  void keep_saved_activations() {
    auto& per_unit = plan_.activations.units;
    // The last unit's are never recomputed; of the others the last ones wait the least.
    const auto keep = [&](size_t count) {
      for (size_t u = 0; u + 1 < per_unit.size(); ++u) {
        per_unit[u].keeps_saved = u + 1 + count >= per_unit.size();
      }
      rebuild();
      return needed(Tier::device) <= budget(Tier::device);
    };
    size_t most = 0;
    size_t too_many = per_unit.size();
    while (too_many - most > 1) {
      const size_t middle = most + (too_many - most) / 2;
      (keep(middle) ? most : too_many) = middle;
    }
    keep(most);
  }

  // Everything that follows from which units keep their activations.
  void rebuild() {
    place_saved();
    make_programs();
    reserve(input_, host_, plan_);
    plan_.summary.evaluate_traffic = evaluate_traffic(plan_);
    plan_.update_traffic = update_traffic(plan_);
    plan_.summary.step_traffic = step_traffic(plan_);
    summarize();
  }

  // Kept units have a place each for every micro-batch under way; the others, and the last, share
  // one.
  void place_saved() {
    ActivationLayout& activations = plan_.activations;
    uint64_t shared = 0;
    for (const PerUnit& unit : activations.units) {
      if (!unit.keeps_saved) {
        shared = std::max<uint64_t>(shared, whole_pages(unit.footprint.saved_bytes));
      }
    }
    activations.saved_bytes = shared;
    for (PerUnit& unit : activations.units) {
      unit.saved_offset = unit.saved_stride = 0;
      if (!unit.keeps_saved) continue;
      const uint64_t bytes = whole_pages(unit.footprint.saved_bytes);
      const bool several = plan_.order == UnitOrder::vertical;
      unit.saved_offset = activations.saved_bytes;
      unit.saved_stride = several ? bytes : 0;
      activations.saved_bytes += bytes * static_cast<uint64_t>(several ? plan_.micro_batches : 1);
    }
  }

  void make_programs() {
    const Config& config = input_.config;
    ProgramInput input{.layout = plan_.layout,
                       .access = {},
                       .keeps_saved = {},
                       .output_bytes = {},
                       .checkpoint_tier = {},
                       .micro_batches = plan_.micro_batches,
                       .training = true,
                       .order = plan_.order,
                       .overlap = config.overlap,
                       .gather_ahead = units_ahead_,
                       .prefetch_numel = prefetch_numel(input_),
                       .max_live_numel = config.max_live_numel,
                       .recycle_gradients = config.stage >= 2,
                       .sums = plan_.sums};
    for (size_t u = 0; u < units().size(); ++u) {
      const PerUnit& unit = plan_.activations.units[u];
      input.access.push_back(access(units()[u]));
      input.keeps_saved.push_back(unit.keeps_saved);
      input.output_bytes.push_back(unit.output_bytes);
      input.checkpoint_tier.push_back(unit.checkpoint_tier);
    }
    plan_.access = input.access;
    plan_.step = make_program(input);
    const OrderInput order{plan_.layout, plan_.state.sub_groups, plan_.step};
    plan_.order_of_use = order_of_use(order);
    plan_.order_of_completion = order_of_completion(order);
    input.training = false;
    input.micro_batches = 1;
    input.order = UnitOrder::plain;
    for (ParameterAccess& access : input.access) {
      // Evaluation finds whole units complete.
      if (access == ParameterAccess::completed) access = ParameterAccess::in_place;
    }
    plan_.evaluate = make_program(input);
    lay_out_places();
    // Evaluation runs in the same window, and may put other units into its slots.
    widen(plan_.step.window_numel, plan_.evaluate.window_numel);
    if (input_.held_units > 0) size_window_for_caller();
  }

  // Any unit in any slot: those that are held, and one ahead.
  void size_window_for_caller() {
    int64_t largest = 0;
    size_t gathered = 0;
    for (size_t u = 0; u < units().size(); ++u) {
      if (plan_.access[u] != ParameterAccess::gathered) continue;
      largest = std::max(largest, units()[u].numel());
      ++gathered;
    }
    const auto slots = static_cast<size_t>(input_.held_units + (input_.config.overlap ? 1 : 0));
    plan_.step.window_numel.assign(std::min(slots, gathered), largest);
  }

  template <typename Size>
  static void widen(std::vector<Size>& sizes, const std::vector<Size>& others) {
    sizes.resize(std::max(sizes.size(), others.size()), 0);
    for (size_t i = 0; i < others.size(); ++i) sizes[i] = std::max(sizes[i], others[i]);
  }

  void lay_out_places() {
    ActivationLayout& activations = plan_.activations;
    std::vector<uint64_t> bytes = plan_.step.place_bytes;
    widen(bytes, plan_.evaluate.place_bytes);
    activations.boundary_bytes = 0;
    activations.place_offset.clear();
    for (const uint64_t place : bytes) {
      activations.place_offset.push_back(activations.boundary_bytes);
      activations.boundary_bytes += place;
    }
  }

  void summarize() {
    PlanSummary& summary = plan_.summary;
    summary.rank = input_.world.rank;
    summary.ranks = input_.world.size;
    summary.parameters = plan_.layout.parameter_count();
    summary.codecs = plan_.state.codecs;
    const auto grains = static_cast<uint64_t>(plan_.layout.trainable_grains());
    summary.training_state_bytes = 0;
    for (StateKind kind :
         {StateKind::grad, StateKind::master, StateKind::exp_avg, StateKind::exp_avg_sq}) {
      summary.training_state_bytes += grains * static_cast<uint64_t>(plan_.state.grain_bytes(kind));
    }
    summary.training_state_bytes += plan_.state.whole_bytes;
    for (StateKind kind : {StateKind::param, StateKind::frozen}) {
      for (Tier tier : kTiers) {
        summary.training_state_bytes += static_cast<uint64_t>(
            plan_.state.placement(kind).array_grains(tier) * plan_.state.grain_bytes(kind));
      }
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
  int units_ahead_ = 1;
  Plan plan_;
};

// The order that moves what it has to in less time; the plain one where it makes no difference.
Plan faster(const PlanInput& input, Plan plain, Plan vertical) {
  constexpr double kWorthwhile = 0.95;
  if (vertical.summary.over_budget()) return plain;
  if (plain.summary.over_budget()) return vertical;
  const bool is_faster =
      step_seconds(vertical, input.speeds) < kWorthwhile * step_seconds(plain, input.speeds);
  return is_faster ? std::move(vertical) : std::move(plain);
}

}  // namespace

Plan make_plan_unchecked(const PlanInput& input) {
  const Config& config = input.config;
  if (input.held_units > 0) return Planner(input, UnitOrder::plain).make();
  if (config.order == OrderChoice::vertical) return Planner(input, UnitOrder::vertical).make();
  Plan plain = Planner(input, UnitOrder::plain).make();
  if (config.order == OrderChoice::plain || config.accumulation_steps == 1) return plain;
  return faster(input, std::move(plain), Planner(input, UnitOrder::vertical).make());
}

Plan make_plan(const PlanInput& input) {
  Plan plan = make_plan_unchecked(input);
  const std::optional<Tier> tier = plan.summary.over_budget();
  if (tier) throw out_of_budget(input, plan.summary, *tier);
  return plan;
}

}  // namespace strata::engine
