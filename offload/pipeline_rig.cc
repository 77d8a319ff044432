#include "offload/pipeline_rig.h"

#include <limits>
#include <span>
#include <utility>

#include "io/block_file.h"
#include "offload/staging.h"

namespace strata::offload {
namespace {

constexpr const char* kTransfer = "transfer";

PlanSummary plan_of(const PipelineRigSetting& setting) {
  PlanSummary plan;
  plan.reservations = PipelineRig::reservations(setting);
  plan.budget_bytes.fill(std::numeric_limits<uint64_t>::max());
  return plan;
}

}  // namespace

std::vector<Reservation> PipelineRig::reservations(const PipelineRigSetting& setting) {
  std::vector<Reservation> all = reservations_for(setting.spec);
  for (const Reservation& staging :
       reservations_for(staging_layout(setting.spec, setting.staging_buffers))) {
    all.push_back(staging);
  }
  all.push_back({Tier::host, StateKind::other, kTransfer, setting.transfer_bytes});
  return all;
}

PipelineRig::PipelineRig(const PipelineRigSetting& setting, Pump* pump, TrafficSink& traffic,
                         UpdateFn update)
    : device_(make_host_device(setting.device, traffic)),
      device_update_(device_->create_queue({"compute", 1})),
      copy_(device_->create_queue({"copy", 1})),
      param_in_(device_->create_queue({"parameters in", 1})),
      param_out_(device_->create_queue({"parameters out", 1})),
      host_update_(make_host_queue({"host update", setting.update_threads},
                                   {.delay_seed = setting.update_delay_seed}, traffic)),
      tiers_(*device_, plan_of(setting)),
      transfer_(tiers_.claim(kTransfer)) {
  ShardFiles shards;
  if (pump != nullptr) make_files(setting, *pump, shards);
  state_.emplace(setting.spec, tiers_, store_ ? &*store_ : nullptr, pump, *copy_,
                 std::move(shards));
  pipeline_.emplace(OptimizerPipeline::Parts{*state_, pump, *host_update_, *device_update_,
                                             *param_in_, *param_out_, traffic},
                    staging_layout(setting.spec, setting.staging_buffers), tiers_,
                    std::move(update), setting.overlap);
}

void PipelineRig::make_files(const PipelineRigSetting& setting, Pump& pump, ShardFiles& shards) {
  const TrainingStateSpec& spec = setting.spec;
  const auto scratch = [&](uint64_t bytes) {
    return io::BlockFile::create_scratch(setting.path, bytes, {}, log_);
  };
  SlotLayout layout = spec.slot_layout();
  SlotStore::Files files{scratch(layout.file_bytes()), {}};
  if (spec.slots > 1) files.journal = scratch(SlotStore::journal_bytes(layout));
  store_.emplace(std::move(layout), std::move(files), pump,
                 SlotStore::Memory{{transfer_.data(), transfer_.bytes()}, setting.checksums});
  for (StateKind kind : kFileKinds) {
    const uint64_t bytes = shard_file_bytes(spec, kind);
    if (bytes > 0) shards[static_cast<size_t>(kind)] = scratch(bytes);
  }
}

}  // namespace strata::offload
