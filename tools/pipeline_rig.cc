#include "tools/pipeline_rig.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <future>
#include <limits>

#include "io/io_backend.h"
#include "kernels/device/host_device.h"
#include "kernels/device/thread_team.h"
#include "strata/clock.h"
#include "strata/error.h"

namespace strata::tools {
namespace {

using offload::Placement;

constexpr const char* kChunk = "bench chunk";
constexpr const char* kCeilingStaging = "ceiling staging";
constexpr int64_t kMostCeilingSubGroups = 64;
constexpr int64_t kSamples = 64;
constexpr DType kHalf = DType::bf16;  // of gradients and parameters

Placement all_in(Tier tier, int64_t grains) {
  return Placement({tier == Tier::device ? 1.0 : 0.0, tier == Tier::host ? 1.0 : 0.0,
                    tier == Tier::nvme ? 1.0 : 0.0},
                   grains);
}

offload::TrainingStateSpec spec_of(const PipelineSetting& setting) {
  const int64_t grains = setting.numel / kGrainNumel;
  offload::TrainingStateSpec spec;
  spec.param = all_in(setting.param, grains);
  spec.grad = all_in(setting.grad, grains);
  spec.optimizer_state.fill(all_in(Tier::nvme, grains));
  spec.param_dtype = kHalf;
  spec.grad_dtype = kHalf;
  spec.sub_groups = offload::cut_sub_groups(setting.sub_group_numel / kGrainNumel,
                                            {spec.param, spec.grad, spec.optimizer_state});
  return spec;
}

uint64_t ceiling_staging_bytes(const offload::StagingLayout& staging) {
  return static_cast<uint64_t>(staging.buffers) * staging.buffer_bytes();
}

int64_t ceiling_sub_groups(const offload::TrainingStateSpec& spec) {
  return std::min(static_cast<int64_t>(spec.sub_groups.size()), kMostCeilingSubGroups);
}

PlanSummary reservations(const PipelineSetting& setting, const offload::TrainingStateSpec& spec,
                         int64_t chunk_grains) {
  const auto staging = offload::staging_layout(spec, setting.staging_buffers);
  PlanSummary plan;
  plan.reservations = offload::reservations_for(spec);
  for (const Reservation& r : offload::reservations_for(staging)) plan.reservations.push_back(r);
  plan.reservations.push_back(
      {Tier::host, StateKind::other, kChunk,
       static_cast<uint64_t>(chunk_grains * spec.grain_bytes(StateKind::master))});
  plan.reservations.push_back(
      {Tier::host, StateKind::other, kCeilingStaging, ceiling_staging_bytes(staging)});
  for (const Reservation& r : plan.reservations) {
    plan.needed_bytes[static_cast<size_t>(r.tier)] += r.bytes;
  }
  plan.budget_bytes.fill(std::numeric_limits<uint64_t>::max());
  return plan;
}

uint16_t bf16_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

// Seven bits of a hash, so that bf16 holds it exactly.
uint16_t gradient(int64_t element, int64_t step) {
  const auto hash = (static_cast<uint64_t>(element) + static_cast<uint64_t>(step) * 0x9e3779b1u) *
                    uint64_t{0xd6e8feb86659fd93};
  return bf16_bits(static_cast<float>(static_cast<int>(hash >> 57) - 64) * 0x1p-10f);
}

ops::OptimizerScalars scalars_of(int64_t step) {
  ops::OptimizerScalars scalars{.lr = 1e-2, .weight_decay = 0.01};
  scalars.bias_correction1 = 1.0 - std::pow(scalars.beta1, static_cast<double>(step));
  scalars.bias_correction2 = 1.0 - std::pow(scalars.beta2, static_cast<double>(step));
  return scalars;
}

ops::EncodedSpans optimizer_spans(const offload::UpdateSpans& spans) {
  return {.master = {spans.state[0], Codec::fp32},
          .exp_avg = {spans.state[1], Codec::fp32},
          .exp_avg_sq = {spans.state[2], Codec::fp32},
          .grad = spans.grad,
          .param = spans.param,
          .grad_dtype = kHalf,
          .param_dtype = kHalf,
          .begin = 0,
          .end = spans.grains.numel(),
          .first_index = static_cast<uint64_t>(spans.grains.begin * kGrainNumel)};
}

double seconds_since(int64_t begin_ns) { return static_cast<double>(now_ns() - begin_ns) * 1e-9; }

// Seven bits, so that bf16 holds it exactly.
float initial_master(int64_t element) { return 0x1p-7f * static_cast<float>(element % 127 - 63); }
uint16_t initial_param(int64_t element) { return bf16_bits(initial_master(element)); }

}  // namespace

uint64_t PipelineRig::memory_bytes(const PipelineSetting& setting) {
  return reservations(setting, spec_of(setting), kChunkGrains)
      .needed_bytes[static_cast<size_t>(Tier::host)];
}

uint64_t PipelineRig::disk_bytes(const PipelineSetting& setting) {
  const offload::TrainingStateSpec spec = spec_of(setting);
  const uint64_t state =
      reservations(setting, spec, kChunkGrains).needed_bytes[static_cast<size_t>(Tier::nvme)];
  const auto staging = offload::staging_layout(spec, setting.staging_buffers);
  return state + static_cast<uint64_t>(ceiling_sub_groups(spec)) * staging.buffer_bytes();
}

PipelineRig::PipelineRig(const PipelineSetting& setting)
    : setting_(setting),
      device_(make_host_device({}, recorder_)),
      device_queue_(device_->create_queue({"compute", 1})),
      param_in_(device_->create_queue({"parameters in", 1})),
      param_out_(device_->create_queue({"parameters out", 1})),
      transfer_queue_(device_->create_queue({"transfer", 1})),
      host_update_(make_host_queue({"host update", setting.threads}, {}, recorder_)),
      ops_(ops::make_host_state_ops()) {
  const offload::TrainingStateSpec spec = spec_of(setting);
  const auto staging = offload::staging_layout(spec, setting.staging_buffers);
  tiers_.emplace(*device_, reservations(setting, spec, kChunkGrains));
  chunk_ = tiers_->claim(kChunk);
  ceiling_staging_ = tiers_->claim(kCeilingStaging);
  make_files(spec);
  pipeline_.emplace(
      offload::OptimizerPipeline::Parts{*state_, pump_.get(), *host_update_, *device_queue_,
                                        *param_in_, *param_out_, recorder_},
      staging, *tiers_,
      [this](const offload::UpdateSpans& spans, Queue& queue) {
        ops_->optimizer_update(queue, scalars_, optimizer_spans(spans));
      },
      /*overlap=*/true);
  for (const offload::SubGroup& group : spec.sub_groups) order_.push_back(group.index);
  for (int i = 0; i < staging.buffers; ++i) {
    lanes_.emplace_back().data =
        ceiling_staging_.data() + static_cast<uint64_t>(i) * staging.buffer_bytes();
  }
  add_samples();
}

PipelineRig::~PipelineRig() = default;

void PipelineRig::make_files(const offload::TrainingStateSpec& spec) {
  auto backend = io::make_backend(io::BackendChoice::automatic, setting_.queue_depth,
                                  /*threads=*/8, log_);
  pump_ = std::make_unique<offload::Pump>(
      std::make_unique<io::IoEngine>(std::move(backend),
                                     io::IoEngine::Options{.block_bytes = setting_.block_bytes},
                                     recorder_),
      /*capacity=*/256);
  const auto scratch = [&](uint64_t bytes) {
    return io::BlockFile::create_scratch(setting_.path, bytes, {}, log_);
  };
  offload::SlotLayout layout = spec.slot_layout();
  offload::SlotStore::Files files{scratch(layout.file_bytes()), {}};
  store_.emplace(std::move(layout), std::move(files), *pump_, std::span<std::byte>());
  offload::ShardFiles shards;
  if (setting_.param == Tier::nvme)
    shards.param = scratch(shard_file_bytes(spec, StateKind::param));
  if (setting_.grad == Tier::nvme) shards.grad = scratch(shard_file_bytes(spec, StateKind::grad));
  state_.emplace(spec, *tiers_, &*store_, pump_.get(), *transfer_queue_, std::move(shards));
  ceiling_sub_groups_ = ceiling_sub_groups(spec);
  const auto staging = offload::staging_layout(spec, setting_.staging_buffers);
  ceiling_file_.emplace(
      scratch(static_cast<uint64_t>(ceiling_sub_groups_) * staging.buffer_bytes()));
}

template <typename Visit>
void PipelineRig::for_chunks(const Progress& progress, const Visit& visit) {
  const TeamScope team(setting_.threads);
  const int64_t all = setting_.numel / kGrainNumel;
  for (const offload::SubGroup& group : state_->spec().sub_groups) {
    for (int64_t begin = group.grains.begin; begin < group.grains.end; begin += kChunkGrains) {
      const int64_t end = std::min(begin + kChunkGrains, group.grains.end);
      visit(GrainRange{begin, end});
      progress(end, all);
    }
  }
}

template <typename T, typename ValueOf>
void PipelineRig::write_chunk(StateKind kind, GrainRange chunk, const ValueOf& value_of) {
  T* const values = chunk_.as<T>();
  const int64_t first = chunk.begin * kGrainNumel;
  parallel_for(chunk.numel(), kGrainNumel, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) values[i] = value_of(first + i);
  });
  state_->write(kind, chunk, chunk_.data());
}

void PipelineRig::fill(const Progress& progress) {
  for_chunks(progress, [&](GrainRange chunk) {
    write_chunk<float>(StateKind::master, chunk, initial_master);
    write_chunk<uint16_t>(StateKind::param, chunk, initial_param);
    for (StateKind kind : {StateKind::exp_avg, StateKind::exp_avg_sq}) {
      write_chunk<float>(kind, chunk, [](int64_t) { return 0.0f; });
    }
  });
  // Zeros might not be written at all somewhere below.
  auto* values = ceiling_staging_.as<float>();
  const auto numel = static_cast<int64_t>(ceiling_staging_.bytes() / sizeof(float));
  for (int64_t i = 0; i < numel; ++i) values[i] = 0x1p-7f * static_cast<float>(i % 127 + 1);
  for (int64_t s = 0; s < ceiling_sub_groups_; ++s) {
    write_ceiling(s);
  }
}

void PipelineRig::write_gradients(int64_t step, const Progress& progress) {
  for_chunks(progress, [&](GrainRange chunk) {
    write_chunk<uint16_t>(StateKind::grad, chunk,
                          [step](int64_t element) { return gradient(element, step); });
  });
}

double PipelineRig::run_step(int64_t step) {
  scalars_ = scalars_of(step);
  const int64_t begin_ns = now_ns();
  pipeline_->read_ahead(order_);
  for (const int32_t sub_group : order_) pipeline_->submit(sub_group);
  pipeline_->settle();
  return seconds_since(begin_ns);
}

// Of a sub-group's place in the ceiling's file: state and gradients are read, state and parameters
// written, one transfer for each.
void PipelineRig::start_transfers(Lane& lane, int64_t sub_group, io::Op op) {
  const auto staging = pipeline_layout();
  const uint64_t place = static_cast<uint64_t>(sub_group) * staging.buffer_bytes();
  const auto start = [&](uint64_t offset, uint64_t bytes) {
    if (bytes == 0) return;
    lane.tickets.push_back(pump_->submit({.op = op,
                                          .file = &*ceiling_file_,
                                          .offset = place + offset,
                                          .data = lane.data + offset,
                                          .bytes = bytes,
                                          .tag = {StateKind::other, -1, "ceiling"}}));
  };
  start(0, staging.state_bytes);
  if (op == io::Op::read) {
    start(staging.state_bytes, staging.grad_bytes);
  } else {
    start(staging.state_bytes + staging.grad_bytes, staging.param_bytes);
  }
}

// All of a sub-group's place, so that nothing is read that was never written.
void PipelineRig::write_ceiling(int64_t sub_group) {
  const uint64_t bytes = pipeline_layout().buffer_bytes();
  pump_
      ->submit({.op = io::Op::write,
                .file = &*ceiling_file_,
                .offset = static_cast<uint64_t>(sub_group) * bytes,
                .data = lanes_[0].data,
                .bytes = bytes,
                .tag = {StateKind::other, -1, "ceiling"}})
      .wait();
}

// Each lane reads, writes and goes on to the next sub-group, as a staging buffer without an update
// would.
double PipelineRig::run_transfers() {
  const int64_t begin_ns = now_ns();
  std::atomic<int64_t> next = 0;
  std::vector<std::future<void>> under_way;
  for (Lane& lane : lanes_) {
    under_way.push_back(std::async(std::launch::async, [this, &lane, &next] {
      for (int64_t s = next++; s < ceiling_sub_groups_; s = next++) {
        for (const io::Op op : {io::Op::read, io::Op::write}) {
          start_transfers(lane, s, op);
          lane.wait();
        }
      }
    }));
  }
  for (std::future<void>& lane : under_way) lane.get();
  return seconds_since(begin_ns);
}

void PipelineRig::Lane::wait() {
  for (offload::Ticket& ticket : tickets) ticket.wait();
  tickets.clear();
}

double PipelineRig::run_update() {
  const auto staging = pipeline_layout();
  const int64_t numel = std::min(setting_.sub_group_numel, setting_.numel);
  std::byte* const state = lanes_[0].data;
  const auto kind_bytes = static_cast<size_t>(stored_bytes(Codec::fp32, numel));
  // Gradients and parameters lie where the staging buffer has none in the next one's place.
  std::byte* const half = lanes_.back().data;
  const ops::EncodedSpans spans{.master = {state, Codec::fp32},
                                .exp_avg = {state + kind_bytes, Codec::fp32},
                                .exp_avg_sq = {state + 2 * kind_bytes, Codec::fp32},
                                .grad = half,
                                .param = half + staging.state_bytes / 2,
                                .grad_dtype = kHalf,
                                .param_dtype = kHalf,
                                .begin = 0,
                                .end = numel};
  const int64_t begin_ns = now_ns();
  ops_->optimizer_update(*host_update_, scalars_of(1), spans);
  host_update_->synchronize();
  return seconds_since(begin_ns);
}

offload::StagingLayout PipelineRig::pipeline_layout() const {
  return offload::staging_layout(state_->spec(), setting_.staging_buffers);
}

LinkBytes PipelineRig::planned() const {
  LinkBytes bytes = {};
  for (const offload::SubGroup& group : state_->spec().sub_groups) {
    bytes = bytes + offload::update_traffic(state_->spec(), group);
  }
  return bytes;
}

int64_t PipelineRig::sub_groups() const { return static_cast<int64_t>(order_.size()); }

// The ceiling's places are all as large as the largest sub-group's.
int64_t PipelineRig::transferred_numel() const {
  return ceiling_sub_groups_ * std::min(setting_.sub_group_numel, setting_.numel);
}

void PipelineRig::check_traffic(int64_t steps) const {
  const LinkBytes moved = recorder_.link_bytes(/*of_update=*/true);
  const LinkBytes planned_step = planned();
  for (size_t link = 0; link < kLinkCount; ++link) {
    const uint64_t expected = planned_step[link] * static_cast<uint64_t>(steps);
    if (moved[link] == expected) continue;
    throw Error(fmt::format("{} bytes went over {} in {} steps where the formula says {}",
                            moved[link], name(static_cast<Activity>(link)), steps, expected));
  }
}

std::string PipelineRig::io_description() const {
  return fmt::format("{}, {}", pump_->engine_name(),
                     store_->file().direct() ? "O_DIRECT" : "buffered");
}

void PipelineRig::add_samples() {
  const int64_t grains = setting_.numel / kGrainNumel;
  const int64_t count = std::min(grains, kSamples);
  for (int64_t k = 0; k < count; ++k) {
    Sample sample;
    sample.grain = count == 1 ? 0 : k * (grains - 1) / (count - 1);  // the first and the last too
    sample.exp_avg.resize(kGrainNumel);
    sample.exp_avg_sq.resize(kGrainNumel);
    sample.grad.resize(kGrainNumel);
    for (int64_t i = 0; i < kGrainNumel; ++i) {
      sample.master.push_back(initial_master(sample.grain * kGrainNumel + i));
      sample.param.push_back(initial_param(sample.grain * kGrainNumel + i));
    }
    samples_.push_back(std::move(sample));
  }
}

void PipelineRig::check_sample(int64_t step) {
  for (Sample& sample : samples_) {
    const std::vector<uint16_t> before = sample.param;
    for (int64_t i = 0; i < kGrainNumel; ++i) {
      sample.grad[static_cast<size_t>(i)] = gradient(sample.grain * kGrainNumel + i, step);
    }
    ops::optimizer_update(scalars_of(step),
                          ops::OptimizerSpans{.master = sample.master.data(),
                                              .exp_avg = sample.exp_avg.data(),
                                              .exp_avg_sq = sample.exp_avg_sq.data(),
                                              .grad = sample.grad.data(),
                                              .param = sample.param.data(),
                                              .numel = kGrainNumel,
                                              .grad_dtype = kHalf,
                                              .param_dtype = kHalf});
    if (sample.param == before) {
      throw CorruptionError(
          fmt::format("step {} changed no parameter of grain {}", step, sample.grain));
    }
    check(sample, StateKind::master, sample.master.data());
    check(sample, StateKind::exp_avg, sample.exp_avg.data());
    check(sample, StateKind::exp_avg_sq, sample.exp_avg_sq.data());
    check(sample, StateKind::param, sample.param.data());
  }
}

void PipelineRig::check(const Sample& sample, StateKind kind, const void* expected) {
  state_->read(kind, {sample.grain, sample.grain + 1}, chunk_.data());
  const auto bytes = static_cast<size_t>(state_->spec().grain_bytes(kind));
  if (std::memcmp(chunk_.data(), expected, bytes) == 0) return;
  throw CorruptionError(fmt::format("{} of grain {} differs from the same update in memory",
                                    name(kind), sample.grain));
}

}  // namespace strata::tools
