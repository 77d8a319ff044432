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

// Sub-groups in parts that fit into the buffer.
std::vector<GrainRange> chunks_of(const Plan& plan) {
  std::vector<GrainRange> chunks;
  for (const offload::SubGroup& group : plan.state.sub_groups) {
    for (int64_t at = group.grains.begin; at < group.grains.end; at += plan.transfer_grains) {
      chunks.push_back({at, std::min(at + plan.transfer_grains, group.grains.end)});
    }
  }
  return chunks;
}

}  // namespace

StateAccess::StateAccess(const Plan& plan, const Parts& parts, offload::TierManager& tiers)
    : plan_(plan),
      parts_(parts),
      memory_(tiers.claim(reserved::kTransfer)),
      values_(memory_.as<float>()),
      stored_(memory_.data() + plan.transfer_grains * kGrainNumel * sizeof(float)),
      chunks_(chunks_of(plan)) {}

StateAccess::Held StateAccess::held(const FlatBuffer& flat, const FlatParameter& parameter) const {
  const int64_t begin = plan_.layout.position(flat, parameter);
  const Range shard = elements(flat.shard());
  return {begin, intersect({begin, begin + parameter.numel()}, shard)};
}

template <typename Visit>
void StateAccess::for_chunks(Range part, const Visit& visit) {
  for (const GrainRange chunk : chunks_) {
    const Range here = intersect(elements(chunk), part);
    if (!here.empty()) visit(chunk, here);
  }
}

void StateAccess::initialize(uint64_t seed) {
  for (const GrainRange chunk : chunks_) {
    fill_initial(chunk, seed);
    store_weights(chunk);
    store_zero_moments(chunk);
  }
  initialize_frozen(seed);
}

void StateAccess::fill_initial(GrainRange chunk, uint64_t seed) {
  std::fill_n(values_, chunk.numel(), 0.0f);
  const Range all = elements(chunk);
  for (const Unit& unit : plan_.layout.units()) {
    for (const FlatParameter& parameter : unit.trainable.parameters) {
      const Held here = held(unit.trainable, parameter);
      const Range part = intersect(here.part, all);
      if (part.empty()) continue;
      fill(parameter.spec, part.begin - here.begin, part.end - part.begin, seed,
           values_ + (part.begin - all.begin));
    }
  }
}

void StateAccess::store_weights(GrainRange chunk) {
  const offload::TrainingStateSpec& spec = plan_.state;
  ops::encode_master(spec.codec(StateKind::master), values_, chunk.numel(), stored_);
  parts_.state.write(StateKind::master, chunk, stored_);
  ops::cast(stored_, spec.param_dtype, values_, DType::fp32, chunk.numel());
  parts_.state.write(StateKind::param, chunk, stored_);
}

void StateAccess::store_zero_moments(GrainRange chunk) {
  for (StateKind kind : {StateKind::exp_avg, StateKind::exp_avg_sq}) {
    std::memset(stored_, 0, plan_.state.padded_bytes(kind, chunk.grains()));
    parts_.state.write(kind, chunk, stored_);
  }
}

void StateAccess::clear_moments(GrainRange chunk, Range part) {
  const int64_t first = part.begin - elements(chunk).begin;
  const int64_t last = first + (part.end - part.begin);
  for (StateKind kind : {StateKind::exp_avg, StateKind::exp_avg_sq}) {
    parts_.state.read(kind, chunk, stored_);
    ops::clear_blocks(plan_.state.codec(kind), first, round_up(last, kCodecBlockNumel), stored_);
    parts_.state.write(kind, chunk, stored_);
  }
}

void StateAccess::load_values(StateKind kind, GrainRange chunk) {
  const Codec codec = plan_.state.codec(kind);
  if (codec == Codec::none) {
    std::fill_n(values_, chunk.numel(), 0.0f);
    return;
  }
  parts_.state.read(kind, chunk, stored_);
  std::byte* param = nullptr;
  if (codec == Codec::split16) {
    param = stored_ + plan_.state.padded_bytes(kind, chunk.grains());
    parts_.state.read(StateKind::param, chunk, param);
  }
  ops::decode_state({kind, codec, stored_, param, values_, chunk.numel()});
}

void StateAccess::initialize_frozen(uint64_t seed) {
  const size_t element_bytes = size_bytes(plan_.state.param_dtype);
  for (const Unit& unit : plan_.layout.units()) {
    for (const FlatParameter& parameter : unit.frozen.parameters) {
      const auto [begin, part] = held(unit.frozen, parameter);
      if (part.empty()) continue;
      std::vector<float> values(static_cast<size_t>(part.end - part.begin));
      fill(parameter.spec, part.begin - begin, part.end - part.begin, seed, values.data());
      std::vector<std::byte> stored(values.size() * element_bytes);
      ops::cast(stored.data(), plan_.state.param_dtype, values.data(), DType::fp32,
                part.end - part.begin);
      copy_frozen(parts_.frozen.data() + static_cast<size_t>(part.begin) * element_bytes,
                  stored.data(), stored.size(), /*read=*/false);
    }
  }
}

void StateAccess::copy_frozen(std::byte* frozen, std::byte* outside, size_t bytes, bool read) {
  const auto room = static_cast<size_t>(plan_.transfer_grains * kGrainNumel *
                                        static_cast<int64_t>(sizeof(float)));
  const TrafficTag tag = {StateKind::param, -1, "transfer"};
  const bool on_device = plan_.frozen_tier == Tier::device;
  for (size_t done = 0; done < bytes; done += room) {
    const size_t part = std::min(room, bytes - done);
    if (read) {
      parts_.transfer.copy(stored_, frozen + done, part,
                           on_device ? CopyDirection::device_to_host : CopyDirection::host_to_host,
                           tag);
      parts_.transfer.synchronize();
      std::memcpy(outside + done, stored_, part);
    } else {
      std::memcpy(stored_, outside + done, part);
      parts_.transfer.copy(frozen + done, stored_, part,
                           on_device ? CopyDirection::host_to_device : CopyDirection::host_to_host,
                           tag);
      parts_.transfer.synchronize();
    }
  }
}

std::vector<float> StateAccess::read(const ParameterRef& ref, StateKind kind) {
  const FlatParameter& parameter = plan_.layout.parameter(ref);
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(ref.unit)];
  if (!ref.trainable && kind != StateKind::param) {
    throw ConfigError(fmt::format("'{}' is frozen: it has no {}", parameter.spec.name, name(kind)));
  }
  const FlatBuffer& flat = ref.trainable ? unit.trainable : unit.frozen;
  std::vector<float> values(static_cast<size_t>(parameter.numel()));
  if (ref.trainable) {
    read_trainable(held(flat, parameter), kind, values);
  } else {
    read_frozen(held(flat, parameter), values);
  }
  share(flat, parameter, values);
  return values;
}

void StateAccess::read_trainable(const Held& here, StateKind kind, std::vector<float>& values) {
  const bool is_encoded = kind != StateKind::param && kind != StateKind::grad;
  for_chunks(here.part, [&](GrainRange chunk, Range part) {
    float* const to = values.data() + (part.begin - here.begin);
    const int64_t skipped = part.begin - elements(chunk).begin;
    if (is_encoded) {
      load_values(kind, chunk);
      std::copy_n(values_ + skipped, part.end - part.begin, to);
      return;
    }
    const DType dtype = kind == StateKind::param ? plan_.state.param_dtype : plan_.state.grad_dtype;
    parts_.state.read(kind, chunk, stored_);
    ops::cast(to, DType::fp32, stored_ + static_cast<size_t>(skipped) * size_bytes(dtype), dtype,
              part.end - part.begin);
  });
}

void StateAccess::read_frozen(const Held& here, std::vector<float>& values) {
  if (here.part.empty()) return;
  const size_t element_bytes = size_bytes(plan_.state.param_dtype);
  const auto numel = static_cast<size_t>(here.part.end - here.part.begin);
  std::vector<std::byte> stored(numel * element_bytes);
  copy_frozen(parts_.frozen.data() + static_cast<size_t>(here.part.begin) * element_bytes,
              stored.data(), stored.size(), /*read=*/true);
  ops::cast(values.data() + (here.part.begin - here.begin), DType::fp32, stored.data(),
            plan_.state.param_dtype, static_cast<int64_t>(numel));
}

// Ranks exchange pieces of one length, of which each has filled what it holds.
void StateAccess::share(const FlatBuffer& flat, const FlatParameter& parameter,
                        std::vector<float>& values) {
  const int ranks = plan_.layout.world_size();
  if (ranks == 1) return;
  const auto part_of = [&](int rank) {
    const int64_t shard = flat.shard_numel;
    const int64_t begin =
        std::clamp(rank * shard - parameter.offset, int64_t{0}, parameter.numel());
    const int64_t end =
        std::clamp((rank + 1) * shard - parameter.offset, int64_t{0}, parameter.numel());
    return Range{begin, end};
  };
  const auto piece = static_cast<size_t>(std::min(flat.shard_numel, parameter.numel()));
  std::vector<float> mine(piece);
  std::vector<float> all(piece * static_cast<size_t>(ranks));
  const Range own = part_of(plan_.layout.rank());
  std::copy(values.begin() + own.begin, values.begin() + own.end, mine.begin());
  parts_.comm.exchange(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)));
  for (int rank = 0; rank < ranks; ++rank) {
    const Range part = part_of(rank);
    std::copy_n(all.begin() + static_cast<int64_t>(piece) * rank, part.end - part.begin,
                values.begin() + part.begin);
  }
}

void StateAccess::write(const ParameterRef& ref, std::span<const float> values) {
  const FlatParameter& parameter = plan_.layout.parameter(ref);
  if (!ref.trainable || static_cast<int64_t>(values.size()) != parameter.numel()) {
    throw ConfigError(fmt::format("'{}' takes {} values, if it is trainable; it was given {}",
                                  parameter.spec.name, parameter.numel(), values.size()));
  }
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(ref.unit)];
  const Held here = held(unit.trainable, parameter);
  for_chunks(here.part, [&](GrainRange chunk, Range part) {
    load_values(StateKind::master, chunk);
    std::copy_n(values.data() + (part.begin - here.begin), part.end - part.begin,
                values_ + (part.begin - elements(chunk).begin));
    store_weights(chunk);
    clear_moments(chunk, part);
  });
}

std::vector<StateAccess::GrainHash> StateAccess::grain_hashes(StateKind kind) {
  std::vector<GrainHash> hashes;
  const bool is_param = kind == StateKind::param;
  const size_t grain_bytes = kGrainNumel * (is_param ? size_bytes(plan_.state.param_dtype) : 4);
  const auto* const first = is_param ? stored_ : reinterpret_cast<const std::byte*>(values_);
  for (const GrainRange chunk : chunks_) {
    is_param ? parts_.state.read(kind, chunk, stored_) : load_values(kind, chunk);
    for (int64_t grain = 0; grain < chunk.grains(); ++grain) {
      XXH128_canonical_t canonical;
      XXH128_canonicalFromHash(
          &canonical, XXH3_128bits(first + static_cast<size_t>(grain) * grain_bytes, grain_bytes));
      std::memcpy(&hashes.emplace_back(), &canonical, sizeof(canonical));
    }
  }
  return hashes;
}

std::string StateAccess::digest(int64_t step, double loss_scale) {
  const int64_t own_grains = plan_.layout.trainable_grains();
  // By kind: all ranks' grains, rank after rank.
  std::array<std::vector<GrainHash>, kDigestKinds.size()> hashes;
  for (size_t k = 0; k < kDigestKinds.size(); ++k) {
    const auto mine = grain_hashes(kDigestKinds[k]);
    hashes[k].resize(mine.size() * static_cast<size_t>(plan_.layout.world_size()));
    parts_.comm.exchange(std::as_bytes(std::span(mine)),
                         std::as_writable_bytes(std::span(hashes[k])));
  }
  Hash128 hash;
  for (const Unit& unit : plan_.layout.units()) {
    const int64_t shard_grains = unit.trainable.shard().grains();
    for (const auto& of_kind : hashes) {
      for (int64_t grain = 0; grain < grains_for(unit.trainable.content_numel); ++grain) {
        const int64_t rank = grain / shard_grains;
        const auto at = static_cast<size_t>(rank * own_grains + unit.trainable.first_grain +
                                            grain % shard_grains);
        hash.add(&of_kind[at], sizeof(of_kind[at]));
      }
    }
  }
  hash.add(&step, sizeof(step));
  hash.add(&loss_scale, sizeof(loss_scale));
  return hash.hex();
}

}  // namespace strata::engine
