#include "engine/runtime/state_access.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/ops/optimizer_ops.h"
#include "kernels/ops/random.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

constexpr std::array<StateKind, 4> kDigestKinds = {StateKind::master, StateKind::exp_avg,
                                                   StateKind::exp_avg_sq, StateKind::param};

void fill(const Parameter& parameter, int64_t first, int64_t numel, uint64_t seed, float* out) {
  if (parameter.init.kind == Initializer::Kind::constant) {
    std::fill_n(out, numel, parameter.init.value);
    return;
  }
  const uint64_t stream = XXH3_64bits(parameter.name.data(), parameter.name.size());
  ops::fill_normal(out, first, numel, parameter.init.value, seed, stream);
}

class Hash128 {
 public:
  Hash128() : state_(XXH3_createState()) { XXH3_128bits_reset(state_); }
  ~Hash128() { XXH3_freeState(state_); }
  Hash128(const Hash128&) = delete;
  Hash128& operator=(const Hash128&) = delete;

  void add(const void* data, size_t bytes) { XXH3_128bits_update(state_, data, bytes); }
  std::string hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_);
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

 private:
  XXH3_state_t* const state_;
};

}  // namespace

StateAccess::StateAccess(const Plan& plan, offload::TrainingState& state,
                         const offload::Arena& frozen, offload::TierManager& tiers, Queue& transfer)
    : plan_(plan),
      state_(state),
      frozen_(frozen),
      transfer_(transfer),
      memory_(tiers.claim(reserved::kTransfer)),
      values_(memory_.data()),
      cast_(memory_.data() + plan.transfer_grains * state.spec().grain_bytes(StateKind::master)) {}

GrainRange StateAccess::grains_of(const ParameterRef& ref) const {
  const FlatBuffer& flat = plan_.layout.units()[static_cast<size_t>(ref.unit)].trainable;
  const FlatParameter& parameter = plan_.layout.parameter(ref);
  return {flat.first_grain + parameter.offset / kGrainNumel,
          flat.first_grain + grains_for(parameter.offset + parameter.numel())};
}

std::vector<GrainRange> StateAccess::chunks(GrainRange grains) const {
  std::vector<GrainRange> parts;
  for (int64_t begin = grains.begin; begin < grains.end; begin += plan_.transfer_grains) {
    parts.push_back({begin, std::min(begin + plan_.transfer_grains, grains.end)});
  }
  return parts;
}

void StateAccess::initialize(uint64_t seed) {
  for (const GrainRange chunk : chunks({0, plan_.layout.trainable_grains()})) {
    fill_initial(chunk, seed);
    store_weights(chunk);
    store_zero_moments(chunk);
  }
  initialize_frozen(seed);
}

void StateAccess::fill_initial(GrainRange chunk, uint64_t seed) {
  float* values = reinterpret_cast<float*>(values_);
  std::fill_n(values, chunk.numel(), 0.0f);
  const int64_t begin = chunk.begin * kGrainNumel;
  const int64_t end = chunk.end * kGrainNumel;
  for (const Unit& unit : plan_.layout.units()) {
    for (const FlatParameter& parameter : unit.trainable.parameters) {
      const int64_t at = unit.trainable.first_grain * kGrainNumel + parameter.offset;
      const int64_t from = std::max(begin, at);
      const int64_t to = std::min(end, at + parameter.numel());
      if (from < to) fill(parameter.spec, from - at, to - from, seed, values + (from - begin));
    }
  }
}

void StateAccess::store_weights(GrainRange chunk) {
  state_.write(StateKind::master, chunk, values_);
  ops::cast(cast_, plan_.state.param_dtype, values_, DType::fp32, chunk.numel());
  state_.write(StateKind::param, chunk, cast_);
}

void StateAccess::store_zero_moments(GrainRange chunk) {
  std::fill_n(reinterpret_cast<float*>(values_), chunk.numel(), 0.0f);
  state_.write(StateKind::exp_avg, chunk, values_);
  state_.write(StateKind::exp_avg_sq, chunk, values_);
}

void StateAccess::initialize_frozen(uint64_t seed) {
  const size_t element_bytes = size_bytes(plan_.state.param_dtype);
  for (const Unit& unit : plan_.layout.units()) {
    for (const FlatParameter& parameter : unit.frozen.parameters) {
      std::vector<float> values(static_cast<size_t>(parameter.numel()));
      fill(parameter.spec, 0, parameter.numel(), seed, values.data());
      std::vector<std::byte> stored(values.size() * element_bytes);
      ops::cast(stored.data(), plan_.state.param_dtype, values.data(), DType::fp32,
                parameter.numel());
      const int64_t at = unit.frozen.first_grain * kGrainNumel + parameter.offset;
      copy_frozen(frozen_.data() + static_cast<size_t>(at) * element_bytes, stored.data(),
                  stored.size(), /*read=*/false);
    }
  }
}

void StateAccess::copy_frozen(std::byte* frozen, std::byte* outside, size_t bytes, bool read) {
  const auto room =
      static_cast<size_t>(plan_.transfer_grains * state_.spec().grain_bytes(StateKind::master));
  const TrafficTag tag = {StateKind::param, -1, "transfer"};
  const bool on_device = plan_.frozen_tier == Tier::device;
  for (size_t done = 0; done < bytes; done += room) {
    const size_t part = std::min(room, bytes - done);
    if (read) {
      transfer_.copy(values_, frozen + done, part,
                     on_device ? CopyDirection::device_to_host : CopyDirection::host_to_host, tag);
      transfer_.synchronize();
      std::memcpy(outside + done, values_, part);
    } else {
      std::memcpy(values_, outside + done, part);
      transfer_.copy(frozen + done, values_, part,
                     on_device ? CopyDirection::host_to_device : CopyDirection::host_to_host, tag);
      transfer_.synchronize();
    }
  }
}

std::vector<float> StateAccess::read_frozen(const FlatParameter& parameter,
                                            const FlatBuffer& flat) {
  const size_t element_bytes = size_bytes(plan_.state.param_dtype);
  std::vector<std::byte> stored(static_cast<size_t>(parameter.numel()) * element_bytes);
  const int64_t at = flat.first_grain * kGrainNumel + parameter.offset;
  copy_frozen(frozen_.data() + static_cast<size_t>(at) * element_bytes, stored.data(),
              stored.size(), /*read=*/true);
  std::vector<float> values(static_cast<size_t>(parameter.numel()));
  ops::cast(values.data(), DType::fp32, stored.data(), plan_.state.param_dtype, parameter.numel());
  return values;
}

std::vector<float> StateAccess::read(const ParameterRef& ref, StateKind kind) {
  const FlatParameter& parameter = plan_.layout.parameter(ref);
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(ref.unit)];
  if (!ref.trainable) {
    if (kind == StateKind::param) return read_frozen(parameter, unit.frozen);
    throw ConfigError(fmt::format("'{}' is frozen: it has no {}", parameter.spec.name, name(kind)));
  }
  const DType stored = kind == StateKind::param  ? plan_.state.param_dtype
                       : kind == StateKind::grad ? plan_.state.grad_dtype
                                                 : DType::fp32;
  const int64_t at = unit.trainable.first_grain * kGrainNumel + parameter.offset;
  std::vector<float> values(static_cast<size_t>(parameter.numel()));
  for (const GrainRange chunk : chunks(grains_of(ref))) {
    state_.read(kind, chunk, values_);
    const int64_t begin = chunk.begin * kGrainNumel;
    const int64_t from = std::max(begin, at);
    const int64_t to = std::min(chunk.end * kGrainNumel, at + parameter.numel());
    ops::cast(values.data() + (from - at), DType::fp32,
              values_ + static_cast<size_t>(from - begin) * size_bytes(stored), stored, to - from);
  }
  return values;
}

void StateAccess::write(const ParameterRef& ref, std::span<const float> values) {
  const FlatParameter& parameter = plan_.layout.parameter(ref);
  if (!ref.trainable || static_cast<int64_t>(values.size()) != parameter.numel()) {
    throw ConfigError(fmt::format("'{}' takes {} values, if it is trainable; it was given {}",
                                  parameter.spec.name, parameter.numel(), values.size()));
  }
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(ref.unit)];
  const int64_t at = unit.trainable.first_grain * kGrainNumel + parameter.offset;
  const auto edit = [&](GrainRange chunk, const auto& element) {
    const int64_t begin = chunk.begin * kGrainNumel;
    const int64_t from = std::max(begin, at);
    const int64_t to = std::min(chunk.end * kGrainNumel, at + parameter.numel());
    float* out = reinterpret_cast<float*>(values_);
    for (int64_t i = from; i < to; ++i) out[i - begin] = element(i - at);
  };
  for (const GrainRange chunk : chunks(grains_of(ref))) {
    state_.read(StateKind::master, chunk, values_);
    edit(chunk, [&](int64_t i) { return values[static_cast<size_t>(i)]; });
    store_weights(chunk);
    for (StateKind kind : {StateKind::exp_avg, StateKind::exp_avg_sq}) {
      state_.read(kind, chunk, values_);
      edit(chunk, [](int64_t) { return 0.0f; });
      state_.write(kind, chunk, values_);
    }
  }
}

std::string StateAccess::digest(int64_t step, double loss_scale) {
  std::array<std::vector<XXH128_canonical_t>, kDigestKinds.size()> hashes;
  const GrainRange all = {0, plan_.layout.trainable_grains()};
  for (size_t k = 0; k < kDigestKinds.size(); ++k) {
    const auto grain_bytes = static_cast<size_t>(state_.spec().grain_bytes(kDigestKinds[k]));
    for (const GrainRange chunk : chunks(all)) {
      state_.read(kDigestKinds[k], chunk, values_);
      for (int64_t grain = 0; grain < chunk.grains(); ++grain) {
        XXH128_canonicalFromHash(
            &hashes[k].emplace_back(),
            XXH3_128bits(values_ + static_cast<size_t>(grain) * grain_bytes, grain_bytes));
      }
    }
  }
  Hash128 hash;
  for (const Unit& unit : plan_.layout.units()) {
    const auto grains = static_cast<size_t>(grains_for(unit.trainable.content_numel));
    for (const auto& of_kind : hashes) {
      const auto* first = of_kind.data() + unit.trainable.first_grain;
      hash.add(first, grains * sizeof(*first));
    }
  }
  hash.add(&step, sizeof(step));
  hash.add(&loss_scale, sizeof(loss_scale));
  return hash.hex();
}

}  // namespace strata::engine
