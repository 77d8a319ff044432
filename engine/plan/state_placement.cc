#include "engine/plan/state_placement.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "strata/error.h"

namespace strata::engine {
namespace {

using offload::Placement;
using offload::WholeRun;

// This rank's shards of one kind of flat buffer, where they lie in whole units.
std::vector<WholeRun> whole_runs(const ModelLayout& layout, DType dtype, bool trainable) {
  const size_t element_bytes = size_bytes(dtype);
  std::vector<WholeRun> runs;
  uint64_t unit_offset = 0;
  for (const Unit& unit : layout.units()) {
    if (!unit.whole) continue;
    const FlatBuffer& flat = trainable ? unit.trainable : unit.frozen;
    const int64_t before = trainable ? 0 : unit.trainable.numel;
    const auto offset = static_cast<uint64_t>(before + flat.shard_offset()) * element_bytes;
    if (!flat.shard().empty()) runs.push_back({flat.shard(), unit_offset + offset});
    unit_offset += static_cast<uint64_t>(unit.numel()) * element_bytes;
  }
  return runs;
}

// Gradients are where their update runs, or wait for it on nvme.
Placement place_gradients(const Config& config, const Placement& master) {
  const int64_t grains = master.grains();
  if (grains == 0) return {};
  const double on_device =
      static_cast<double>(master.range(Tier::device).end) / static_cast<double>(grains);
  const double elsewhere = 1.0 - on_device;
  const double on_nvme = elsewhere * config.grad.nvme;
  return Placement({on_device, elsewhere - on_nvme, on_nvme}, grains);
}

}  // namespace

uint64_t whole_offset(const ModelLayout& layout, int unit, DType dtype) {
  int64_t numel = 0;
  for (int u = 0; u < unit; ++u) {
    const Unit& before = layout.units()[static_cast<size_t>(u)];
    if (before.whole) numel += before.numel();
  }
  return static_cast<uint64_t>(numel) * size_bytes(dtype);
}

offload::TrainingStateSpec place_state(const Config& config, const ModelLayout& layout,
                                       int64_t pinned_until) {
  offload::TrainingStateSpec state;
  const int64_t grains = layout.trainable_grains();
  state.param_dtype = config.dtype;
  state.param = Placement(config.param, grains).with_whole(whole_runs(layout, config.dtype, true));
  state.frozen = Placement(config.param, layout.frozen_grains())
                     .with_whole(whole_runs(layout, config.dtype, false));
  state.whole_bytes = whole_offset(layout, static_cast<int>(layout.units().size()), config.dtype);
  for (size_t i = 0; i < kOptimizerKindCount; ++i) {
    state.optimizer_state[i] =
        Placement(config.optimizer_state[i], grains).pinned_until(pinned_until);
  }
  state.grad = place_gradients(config, state.optimizer_state[0]);
  state.codecs = codecs_of(config);
  // Sums over ranks and micro-batches are fp32; one micro-batch's on one rank is kept as it is.
  state.grad_dtype =
      config.accumulation_steps == 1 && layout.world_size() == 1 ? config.dtype : DType::fp32;
  state.slots = config.slots;
  state.sub_groups = offload::cut_sub_groups(config.sub_group_numel / kGrainNumel,
                                             {state.param, state.grad, state.optimizer_state});
  for (const offload::SubGroup& group : state.sub_groups) {
    if (group.update_tier() != Tier::device || group.param_tier == Tier::device) continue;
    throw ConfigError(
        "optimizer state on the device needs its parameters there too: set "
        "zero_optimization.offload_param.device to \"none\", or offload the optimizer as well");
  }
  return state;
}

}  // namespace strata::engine
