#include "tools/pipeline_case.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "io/io_backend.h"
#include "kernels/device/thread_team.h"
#include "strata/clock.h"
#include "strata/error.h"
#include "strata/grain.h"

namespace strata::tools {
namespace {

constexpr int64_t kChunkGrains = 1024;  // written at a time
constexpr int64_t kSamples = 64;
constexpr DType kHalf = DType::bf16;  // of gradients and parameters
constexpr uint32_t kBlockBytes = 1 << 20;
constexpr uint32_t kQueueDepth = 32;

offload::Placement all_in(Tier tier, int64_t grains) {
  return offload::Placement({tier == Tier::device ? 1.0 : 0.0, tier == Tier::host ? 1.0 : 0.0,
                             tier == Tier::nvme ? 1.0 : 0.0},
                            grains);
}

offload::TrainingStateSpec spec_of(const PipelineSetting& setting) {
  const int64_t grains = setting.numel / kGrainNumel;
  offload::TrainingStateSpec spec;
  spec.param = all_in(setting.param, grains);
  spec.grad = all_in(setting.grad, grains);
  spec.optimizer_state.fill(all_in(Tier::nvme, grains));
  spec.codecs = {setting.master, setting.moments, setting.moments};
  spec.param_dtype = kHalf;
  spec.grad_dtype = kHalf;
  spec.sub_groups = offload::cut_sub_groups(setting.sub_group_numel / kGrainNumel,
                                            {spec.param, spec.grad, spec.optimizer_state});
  return spec;
}

// A chunk's values in fp32, and after them the chunk as it is kept.
constexpr uint64_t kChunkBytes = static_cast<uint64_t>(kChunkGrains) * kGrainNumel * sizeof(float);

offload::PipelineRigSetting rig_setting(const PipelineSetting& setting) {
  offload::PipelineRigSetting rig;
  rig.spec = spec_of(setting);
  rig.staging_buffers = setting.staging_buffers;
  rig.transfer_bytes = 2 * kChunkBytes;
  rig.path = setting.path;
  rig.update_threads = setting.threads;
  return rig;
}

uint64_t rig_bytes(const PipelineSetting& setting, Tier tier) {
  uint64_t sum = 0;
  for (const Reservation& r : offload::PipelineRig::reservations(rig_setting(setting))) {
    if (r.tier == tier) sum += r.bytes;
  }
  return sum;
}

std::unique_ptr<offload::Pump> make_pump(TrafficSink& traffic, LogSink& log) {
  auto backend = io::make_backend(io::BackendChoice::automatic, kQueueDepth, /*threads=*/8, log);
  const io::IoEngine::Options options{.block_bytes = kBlockBytes};
  return std::make_unique<offload::Pump>(
      std::make_unique<io::IoEngine>(std::move(backend), options, traffic), /*capacity=*/256);
}

// Seven bits each, so that bf16 holds them exactly.
float gradient(int64_t element, int64_t step) {
  const auto hash = (static_cast<uint64_t>(element) + static_cast<uint64_t>(step) * 0x9e3779b1u) *
                    uint64_t{0xd6e8feb86659fd93};
  return static_cast<float>(static_cast<int>(hash >> 57) - 64) * 0x1p-10f;
}
float initial_master(int64_t element) { return 0x1p-7f * static_cast<float>(element % 127 - 63); }

ops::OptimizerScalars scalars_of(int64_t step) {
  ops::OptimizerScalars scalars{.lr = 1e-2, .weight_decay = 0.01};
  scalars.bias_correction1 = 1.0 - std::pow(scalars.beta1, static_cast<double>(step));
  scalars.bias_correction2 = 1.0 - std::pow(scalars.beta2, static_cast<double>(step));
  scalars.step = static_cast<uint64_t>(step);
  return scalars;
}

// values[i] = value_of(element) for the elements of these grains.
template <typename ValueOf>
void make_values(GrainRange grains, const ValueOf& value_of, float* values) {
  const int64_t first = grains.begin * kGrainNumel;
  parallel_for(grains.numel(), kGrainNumel, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) values[i] = value_of(first + i);
  });
}

// Calls visit(grains) for runs of a sub-group's grains that a chunk holds, and then progress.
template <typename Visit>
void for_chunks(const offload::TrainingStateSpec& spec, const PipelineCase::Progress& progress,
                const Visit& visit) {
  for (const offload::SubGroup& group : spec.sub_groups) {
    for (int64_t begin = group.grains.begin; begin < group.grains.end; begin += kChunkGrains) {
      const int64_t end = std::min(begin + kChunkGrains, group.grains.end);
      visit(GrainRange{begin, end});
      progress(end, spec.sub_groups.back().grains.end);
    }
  }
}

}  // namespace

uint64_t PipelineCase::memory_bytes(const PipelineSetting& setting) {
  return rig_bytes(setting, Tier::host) +
         PipelineCeiling::memory_bytes(spec_of(setting), setting.staging_buffers);
}

uint64_t PipelineCase::disk_bytes(const PipelineSetting& setting) {
  return rig_bytes(setting, Tier::nvme) + PipelineCeiling::file_bytes(spec_of(setting));
}

PipelineCase::PipelineCase(const PipelineSetting& setting)
    : setting_(setting),
      ops_(ops::make_host_state_ops()),
      pump_(make_pump(recorder_, log_)),
      rig_(rig_setting(setting), pump_.get(), recorder_,
           [this](const offload::UpdateSpans& spans, Queue& queue) { update(spans, queue); }) {
  const TeamScope team(setting.threads);
  ceiling_ = std::make_unique<PipelineCeiling>(
      PipelineCeiling::Parts{
          rig_.spec(), *pump_, rig_.host_update(),
          [this](const offload::UpdateSpans& spans, Queue& queue) { update(spans, queue); }},
      setting.staging_buffers,
      io::BlockFile::create_scratch(setting.path, PipelineCeiling::file_bytes(rig_.spec()), {},
                                    log_));
  for (const offload::SubGroup& group : rig_.spec().sub_groups) order_.push_back(group.index);
  add_samples();
}

ops::EncodedSpans PipelineCase::encoded(const offload::UpdateSpans& spans) const {
  return {.master = {spans.state[0], setting_.master},
          .exp_avg = {spans.state[1], setting_.moments},
          .exp_avg_sq = {spans.state[2], setting_.moments},
          .grad = spans.grad,
          .param = spans.param,
          .grad_dtype = kHalf,
          .param_dtype = kHalf,
          .begin = 0,
          .end = spans.grains.numel(),
          .first_index = static_cast<uint64_t>(spans.grains.begin * kGrainNumel)};
}

void PipelineCase::update(const offload::UpdateSpans& spans, Queue& queue) const {
  ops_->optimizer_update(queue, scalars_, encoded(spans));
}

void PipelineCase::fill(const Progress& progress) {
  const TeamScope team(setting_.threads);
  auto* const values = rig_.transfer().as<float>();
  std::byte* const kept = rig_.transfer().data() + kChunkBytes;
  for_chunks(rig_.spec(), progress, [&](GrainRange chunk) {
    make_values(chunk, initial_master, values);
    ops::encode_master(setting_.master, values, chunk.numel(), kept);
    rig_.state().write(StateKind::master, chunk, kept);
    ops::cast(kept, kHalf, values, DType::fp32, chunk.numel());
    rig_.state().write(StateKind::param, chunk, kept);
    std::memset(kept, 0, kChunkBytes);  // zero in every codec
    rig_.state().write(StateKind::exp_avg, chunk, kept);
    rig_.state().write(StateKind::exp_avg_sq, chunk, kept);
  });
  ceiling_->fill();
}

void PipelineCase::write_gradients(int64_t step, const Progress& progress) {
  const TeamScope team(setting_.threads);
  auto* const values = rig_.transfer().as<float>();
  std::byte* const kept = rig_.transfer().data() + kChunkBytes;
  for_chunks(rig_.spec(), progress, [&](GrainRange chunk) {
    make_values(
        chunk, [step](int64_t element) { return gradient(element, step); }, values);
    ops::cast(kept, kHalf, values, DType::fp32, chunk.numel());
    rig_.state().write(StateKind::grad, chunk, kept);
  });
}

double PipelineCase::run_step(int64_t step) {
  scalars_ = scalars_of(step);
  const int64_t begin_ns = now_ns();
  rig_.pipeline().read_ahead(order_);
  for (const int32_t sub_group : order_) rig_.pipeline().submit(sub_group);
  rig_.pipeline().settle();
  return seconds_since(begin_ns);
}

LinkBytes PipelineCase::planned() const {
  LinkBytes bytes = {};
  for (const offload::SubGroup& group : rig_.spec().sub_groups) {
    bytes = bytes + offload::update_traffic(rig_.spec(), group);
  }
  return bytes;
}

void PipelineCase::check_traffic(int64_t steps) const {
  const LinkBytes moved = recorder_.link_bytes(Account::update);
  const LinkBytes planned_step = planned();
  for (size_t link = 0; link < kLinkCount; ++link) {
    const uint64_t expected = planned_step[link] * static_cast<uint64_t>(steps);
    if (moved[link] == expected) continue;
    throw Error(fmt::format("{} bytes went over {} in {} steps where the formula says {}",
                            moved[link], name(static_cast<Activity>(link)), steps, expected));
  }
}

std::string PipelineCase::io_description() const {
  return fmt::format("{}, {}", pump_->engine_name(),
                     rig_.store().file().direct() ? "O_DIRECT" : "buffered");
}

void PipelineCase::add_samples() {
  const int64_t grains = setting_.numel / kGrainNumel;
  const int64_t count = std::min(grains, kSamples);
  std::vector<float> values(kGrainNumel);
  for (int64_t k = 0; k < count; ++k) {
    Sample sample;
    sample.grain = count == 1 ? 0 : k * (grains - 1) / (count - 1);  // the first and the last too
    for (size_t i = 0; i < kOptimizerKindCount; ++i) {
      sample.state[i].resize(static_cast<size_t>(rig_.spec().grain_bytes(kOptimizerKinds[i])));
    }
    sample.param.resize(static_cast<size_t>(rig_.spec().grain_bytes(StateKind::param)));
    make_values({sample.grain, sample.grain + 1}, initial_master, values.data());
    ops::encode_master(setting_.master, values.data(), kGrainNumel, sample.state[0].data());
    ops::cast(sample.param.data(), kHalf, values.data(), DType::fp32, kGrainNumel);
    samples_.push_back(std::move(sample));
  }
}

void PipelineCase::check_sample(int64_t step) {
  std::vector<float> values(kGrainNumel);
  std::vector<uint16_t> grad(kGrainNumel);
  for (Sample& sample : samples_) {
    const GrainRange grain = {sample.grain, sample.grain + 1};
    make_values(
        grain, [step](int64_t element) { return gradient(element, step); }, values.data());
    ops::cast(grad.data(), kHalf, values.data(), DType::fp32, kGrainNumel);
    const std::vector<std::byte> before = sample.param;
    offload::UpdateSpans spans{.grains = grain, .param = sample.param.data()};
    for (size_t i = 0; i < kOptimizerKindCount; ++i) spans.state[i] = sample.state[i].data();
    spans.grad = reinterpret_cast<const std::byte*>(grad.data());
    ops::optimizer_update(scalars_of(step), encoded(spans));
    if (sample.param == before) {
      throw CorruptionError(
          fmt::format("step {} changed no parameter of grain {}", step, sample.grain));
    }
    for (size_t i = 0; i < kOptimizerKindCount; ++i) {
      check(sample.grain, kOptimizerKinds[i], sample.state[i]);
    }
    check(sample.grain, StateKind::param, sample.param);
  }
}

void PipelineCase::check(int64_t grain, StateKind kind, const std::vector<std::byte>& expected) {
  // What is read as a whole: a grain alone need not start at a disk block.
  const int64_t sub_group_grains = rig_.spec().sub_groups.front().grains.grains();
  const int64_t skipped = grain % sub_group_grains % offload::kTransferAlignGrains;
  const int64_t begin = grain - skipped;
  const int64_t end =
      std::min({begin + offload::kTransferAlignGrains,
                (begin / sub_group_grains + 1) * sub_group_grains, rig_.spec().param.grains()});
  rig_.state().read(kind, {begin, end}, rig_.transfer().data());
  const std::byte* const found = rig_.transfer().data() + skipped * rig_.spec().grain_bytes(kind);
  if (std::memcmp(found, expected.data(), expected.size()) == 0) return;
  throw CorruptionError(
      fmt::format("{} of grain {} differs from the same update in memory", name(kind), grain));
}

}  // namespace strata::tools
