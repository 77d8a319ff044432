#include "tools/pipeline_ceiling.h"

#include <algorithm>
#include <atomic>
#include <future>
#include <utility>

#include "kernels/device/thread_team.h"
#include "offload/staging.h"
#include "strata/clock.h"
#include "strata/grain.h"

namespace strata::tools {
namespace {

constexpr size_t kMostPlaces = 64;  // sub-groups in the file
constexpr int kUpdateRounds = 3;

int64_t places(const offload::TrainingStateSpec& spec) {
  return static_cast<int64_t>(std::min(spec.sub_groups.size(), kMostPlaces));
}

uint64_t first_bytes(const offload::TrainingStateSpec& spec, StateKind kind) {
  return spec.padded_bytes(kind, spec.sub_groups.front().grains.grains());
}

}  // namespace

LaneLayout::LaneLayout(const offload::TrainingStateSpec& spec)
    : grad(spec.extent_bytes(spec.sub_groups.front())),
      param(grad + first_bytes(spec, StateKind::grad)),
      bytes(param + first_bytes(spec, StateKind::param)) {}

uint64_t PipelineCeiling::memory_bytes(const offload::TrainingStateSpec& spec, int lanes) {
  return LaneLayout(spec).bytes * static_cast<uint64_t>(lanes);
}

uint64_t PipelineCeiling::file_bytes(const offload::TrainingStateSpec& spec) {
  return LaneLayout(spec).bytes * static_cast<uint64_t>(places(spec));
}

PipelineCeiling::PipelineCeiling(Parts parts, int lanes, io::BlockFile file)
    : parts_(std::move(parts)),
      layout_(parts_.spec),
      lanes_(lanes),
      memory_(static_cast<int64_t>(memory_bytes(parts_.spec, lanes)), 1),
      file_(std::move(file)) {}

std::byte* PipelineCeiling::lane(int64_t index) const {
  return memory_.as<std::byte>() + static_cast<uint64_t>(index) * layout_.bytes;
}

// Floats from 1/128 to 1, whose halves and bytes are ordinary values in every codec. Zeros might
// not be written at all somewhere below.
void PipelineCeiling::fill() {
  const auto numel = static_cast<int64_t>(memory_bytes(parts_.spec, lanes_) / sizeof(float));
  parallel_for(numel, kGrainNumel, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      memory_.as<float>()[i] = 0x1p-7f * static_cast<float>(i % 127 + 1);
    }
  });
  for (int64_t place = 0; place < places(parts_.spec); ++place) {
    const uint64_t offset = static_cast<uint64_t>(place) * layout_.bytes;
    submit(io::Op::write, lane(0), offset, layout_.bytes).wait();
  }
}

offload::Ticket PipelineCeiling::submit(io::Op op, std::byte* data, uint64_t offset,
                                        uint64_t bytes) {
  return parts_.pump.submit({.op = op,
                             .file = &file_,
                             .offset = offset,
                             .data = data,
                             .bytes = bytes,
                             .tag = {StateKind::other, -1, "ceiling"}});
}

void PipelineCeiling::transfer(std::byte* lane, int64_t place, io::Op op) {
  const offload::SubGroup& group = parts_.spec.sub_groups.front();
  std::vector<offload::Ticket> under_way;
  const auto start = [&](uint64_t begin, uint64_t end) {
    const uint64_t offset = static_cast<uint64_t>(place) * layout_.bytes + begin;
    under_way.push_back(submit(op, lane + begin, offset, end - begin));
  };
  start(0, layout_.grad);
  const bool is_read = op == io::Op::read;
  if (is_read && group.grad_tier == Tier::nvme) start(layout_.grad, layout_.param);
  if (group.param_tier == Tier::nvme && (!is_read || parts_.spec.loads_param(group))) {
    start(layout_.param, layout_.bytes);
  }
  for (offload::Ticket& ticket : under_way) ticket.wait();
}

double PipelineCeiling::of_all(double seconds, int64_t sub_groups) const {
  const std::vector<offload::SubGroup>& all = parts_.spec.sub_groups;
  return seconds * static_cast<double>(all.back().grains.end) /
         static_cast<double>(sub_groups * all.front().grains.grains());
}

// Each lane reads, writes and goes on to the next sub-group, as a staging buffer without an update
// would.
double PipelineCeiling::transfers_s() {
  const int64_t count = places(parts_.spec);
  const int64_t begin_ns = now_ns();
  std::atomic<int64_t> next = 0;
  std::vector<std::future<void>> under_way;
  for (int i = 0; i < lanes_; ++i) {
    under_way.push_back(std::async(std::launch::async, [this, i, count, &next] {
      for (int64_t place = next++; place < count; place = next++) {
        for (const io::Op op : {io::Op::read, io::Op::write}) transfer(lane(i), place, op);
      }
    }));
  }
  for (std::future<void>& lane : under_way) lane.get();
  return of_all(seconds_since(begin_ns), count);
}

// One lane after another, so that each finds its bytes in memory as a step does, not in a cache.
double PipelineCeiling::updates_s() {
  const offload::SubGroup& group = parts_.spec.sub_groups.front();
  double best = 0;
  for (int round = 0; round < kUpdateRounds; ++round) {
    const int64_t begin_ns = now_ns();
    for (int i = 0; i < lanes_; ++i) {
      std::byte* const begin = lane(i);
      offload::UpdateSpans spans{.grains = group.grains};
      for (size_t kind = 0; kind < kOptimizerKindCount; ++kind) {
        spans.state[kind] = begin + parts_.spec.extent_offset(group, kOptimizerKinds[kind]);
      }
      spans.grad = begin + layout_.grad;
      spans.param = begin + layout_.param;
      parts_.update(spans, parts_.host_update);
    }
    parts_.host_update.synchronize();
    const double seconds = seconds_since(begin_ns);
    best = round == 0 ? seconds : std::min(best, seconds);
  }
  return of_all(best, lanes_);
}

}  // namespace strata::tools
