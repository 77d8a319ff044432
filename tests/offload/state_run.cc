#include "tests/offload/state_run.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace strata::offload {
namespace {

constexpr int64_t kGrains = 3;  // a sub-group each

// A sub-group's extent: a master grain of 16 KiB, and an int8 one with the rest of its last disk
// block. Parameters and gradients lie in files that nobody opens.
TrainingStateSpec toy_spec() {
  TrainingStateSpec spec;
  spec.param = Placement({0, 0, 1}, kGrains);
  spec.grad = spec.param;
  spec.optimizer_state.fill(spec.param);
  spec.codecs = {Codec::fp32, Codec::int8, Codec::none};
  spec.sub_groups = cut_sub_groups(1, {spec.param, spec.grad, spec.optimizer_state});
  spec.slots = 2;
  return spec;
}

PlanSummary plan_of(const TrainingStateSpec& spec) {
  PlanSummary plan;
  plan.reservations = reservations_for(spec);
  plan.budget_bytes.fill(std::numeric_limits<uint64_t>::max());
  return plan;
}

// The toy update. One-to-one, so that a bit that is wrong stays wrong.
void update(std::span<uint64_t> words, uint64_t salt) {
  for (uint64_t& word : words) word = word * 6364136223846793005u + 2 * salt + 1;
}

std::vector<uint64_t> initial_words(uint64_t bytes) {
  std::vector<uint64_t> words(bytes / sizeof(uint64_t));
  for (size_t i = 0; i < words.size(); ++i) words[i] = (i + 1) * 0x9e3779b97f4a7c15u;
  return words;
}

std::span<uint64_t> words_of(std::span<std::byte> bytes) {
  return {reinterpret_cast<uint64_t*>(bytes.data()), bytes.size() / sizeof(uint64_t)};
}

}  // namespace

StateSite::StateSite()
    : device_(make_host_device({}, traffic_)),
      queue_(device_->create_queue({"transfer", 1})),
      spec_(toy_spec()),
      extent_bytes_(spec_.extent_bytes(spec_.sub_groups[0])),
      record_(device_->allocate_pinned(SlotStore::journal_bytes(spec_.slot_layout()) / 2)),
      buffers_(device_->allocate_pinned(kGrains * extent_bytes_)),
      initial_(initial_words(kGrains * extent_bytes_)) {
  const SlotLayout layout = spec_.slot_layout();
  io::BlockFile::create(state_path(), layout.file_bytes(), {}, log_);
  io::BlockFile::create(journal_path(), SlotStore::journal_bytes(layout), {}, log_);
}

SlotStore::Files StateSite::open() {
  return {io::BlockFile::open(state_path(), {}, log_),
          io::BlockFile::open(journal_path(), {}, log_)};
}

std::span<std::byte> StateSite::buffer(int32_t sub_group) const {
  return {buffers_.data() + static_cast<uint64_t>(sub_group) * extent_bytes_, extent_bytes_};
}

StateRun::StateRun(StateSite& site, Pump& pump, bool checksums)
    : site_(site),
      pump_(pump),
      tiers_(site.device(), plan_of(site.spec())),
      store_(site.spec().slot_layout(), site.open(), pump,
             SlotStore::Memory{site.record(), checksums}),
      state_(site.spec(), tiers_, &store_, &pump, site.queue()) {}

void StateRun::begin() {
  std::ranges::copy(std::as_bytes(site_.initial()), site_.buffer(0).data());
  for (const SubGroup& group : site_.spec().sub_groups) {
    for (StateKind kind : {StateKind::master, StateKind::exp_avg}) {
      state_.write(kind, group.grains,
                   site_.buffer(group.index).data() + site_.spec().extent_offset(group, kind));
    }
  }
  store_.begin(0, {});
}

void StateRun::step(uint64_t salt) {
  std::vector<Ticket> writes;
  for (const SubGroup& group : site_.spec().sub_groups) {
    const std::span<std::byte> bytes = site_.buffer(group.index);
    const auto command = [&](io::Op op, Extent extent) {
      return IoCommand{op, &store_.file(), extent.offset, bytes.data(), extent.bytes, {}};
    };
    pump_.submit(command(io::Op::read, store_.current(group.index))).wait();
    store_.check(group.index, store_.current_slot(), 0, bytes);
    update(words_of(bytes), salt);
    store_.seal(group.index, store_.next_slot(), 0, bytes);
    writes.push_back(pump_.submit(command(io::Op::write, store_.next(group.index))));
  }
  for (Ticket& write : writes) write.wait();
}

void StateRun::commit() { store_.commit({}); }

std::optional<uint64_t> StateRun::recover(uint64_t newest_generation) {
  const std::optional<JournalRecord> record = store_.recover(newest_generation);
  if (!record) return std::nullopt;
  return record->generation;
}

bool StateRun::holds(std::span<const uint64_t> salts) {
  for (const SubGroup& group : site_.spec().sub_groups) {
    std::byte* const extent = site_.buffer(group.index).data();
    for (StateKind kind : {StateKind::master, StateKind::exp_avg}) {
      state_.read(kind, group.grains, extent + site_.spec().extent_offset(group, kind));
    }
  }
  std::vector<uint64_t> expected(site_.initial().begin(), site_.initial().end());
  for (const uint64_t salt : salts) update(expected, salt);
  const size_t bytes = expected.size() * sizeof(uint64_t);
  return std::memcmp(site_.buffer(0).data(), expected.data(), bytes) == 0;
}

}  // namespace strata::offload
