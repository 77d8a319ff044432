#include "offload/optimizer_pipeline.h"

#include <algorithm>
#include <utility>

#include "offload/pipeline_graph.h"

namespace strata::offload {

bool can_speculate(const TrainingStateSpec& spec, const SubGroup& group) {
  return spec.codec(StateKind::master) == Codec::fp32 && group.grad_tier != Tier::nvme &&
         std::all_of(group.state_tier.begin(), group.state_tier.end(),
                     [](Tier tier) { return tier == Tier::nvme; });
}

OptimizerPipeline::OptimizerPipeline(const Parts& parts, const StagingLayout& layout,
                                     TierManager& tiers, UpdateFn update, bool overlap)
    : graph_(std::make_unique<Graph>(parts, layout, tiers, std::move(update), overlap)) {}

OptimizerPipeline::~OptimizerPipeline() = default;

void OptimizerPipeline::read_ahead(std::span<const int32_t> order) { graph_->read_ahead(order); }
void OptimizerPipeline::submit(int32_t sub_group, Purpose purpose, const Event& gradient) {
  graph_->submit(sub_group, purpose, gradient);
}
bool OptimizerPipeline::recall(int32_t sub_group) { return graph_->recall(sub_group); }
bool OptimizerPipeline::has_parameters(int32_t sub_group) const {
  return graph_->has_parameters(sub_group);
}
Event OptimizerPipeline::parameters(int32_t sub_group) { return graph_->parameters(sub_group); }
void OptimizerPipeline::drain() { graph_->drain(); }
void OptimizerPipeline::settle() { graph_->settle(); }
void OptimizerPipeline::await_writes() { graph_->await_writes(); }
void OptimizerPipeline::finish() noexcept { graph_->finish(); }
void OptimizerPipeline::abandon(std::exception_ptr failure) { graph_->abandon(std::move(failure)); }
LinkBytes OptimizerPipeline::promised() const { return graph_->promised(); }

}  // namespace strata::offload
