#include "engine/runtime/state_access.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "engine/model/slice_runs.h"
#include "kernels/ops/optimizer_ops.h"
#include "kernels/ops/random.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

constexpr std::array<StateKind, 4> kDigestKinds = {StateKind::master, StateKind::exp_avg,
                                                   StateKind::exp_avg_sq, StateKind::param};

void fill(const Parameter& parameter, int64_t first, std::span<float> out,
          const StateAccess::InitialValues& initial) {
  const std::string& name = parameter.slice ? parameter.slice->of : parameter.name;
  if (initial.given) {
    models::for_runs_in_whole(parameter, first, out, [&](int64_t whole, std::span<float> run) {
      initial.given(name, whole, run);
    });
    return;
  }
  if (parameter.init.kind == Initializer::Kind::constant) {
    std::fill(out.begin(), out.end(), parameter.init.value);
    return;
  }
  const uint64_t stream = XXH3_64bits(name.data(), name.size());
  models::for_runs_in_whole(parameter, first, out, [&](int64_t whole, std::span<float> run) {
    ops::fill_normal(run.data(), whole, static_cast<int64_t>(run.size()), parameter.init.value,
                     initial.seed, stream);
  });
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

// Parts that fit into the buffer.
void append_parts(GrainRange grains, const Plan& plan, std::vector<GrainRange>& chunks) {
  for (int64_t at = grains.begin; at < grains.end; at += plan.transfer_grains) {
    chunks.push_back({at, std::min(at + plan.transfer_grains, grains.end)});
  }
}

std::vector<GrainRange> chunks_of_sub_groups(const Plan& plan) {
  std::vector<GrainRange> chunks;
  for (const offload::SubGroup& group : plan.state.sub_groups) {
    append_parts(group.grains, plan, chunks);
  }
  return chunks;
}

// Each in one tier.
std::vector<GrainRange> frozen_chunks_of(const Plan& plan) {
  const offload::Placement& frozen = plan.state.frozen;
  std::vector<int64_t> cuts = frozen.cuts();
  cuts.push_back(frozen.grains());
  std::sort(cuts.begin(), cuts.end());
  std::vector<GrainRange> chunks;
  int64_t begin = 0;
  for (const int64_t cut : cuts) append_parts({std::exchange(begin, cut), cut}, plan, chunks);
  return chunks;
}

}  // namespace

StateAccess::StateAccess(const Plan& plan, const Parts& parts)
    : plan_(plan),
      parts_(parts),
      values_(reinterpret_cast<float*>(parts.memory.data())),
      stored_(parts.memory.data() + parts.memory.size() / 2),
      chunks_(chunks_of_sub_groups(plan)),
      frozen_chunks_(frozen_chunks_of(plan)) {}

StateAccess::Held StateAccess::held(const FlatBuffer& flat, const FlatParameter& parameter) const {
  const int64_t begin = plan_.layout.position(flat, parameter);
  const Range shard = elements(flat.shard());
  return {begin, intersect({begin, begin + parameter.numel()}, shard)};
}

template <typename Visit>
void StateAccess::for_chunks(const std::vector<GrainRange>& chunks, Range part,
                             const Visit& visit) {
  for (const GrainRange chunk : chunks) {
    const Range here = intersect(elements(chunk), part);
    if (!here.empty()) visit(chunk, here);
  }
}

void StateAccess::initialize(const InitialValues& initial) {
  for (const GrainRange chunk : chunks_) {
    fill_initial(chunk, /*trainable=*/true, initial);
    store_weights(chunk);
    store_zero_moments(chunk);
  }
  for (const GrainRange chunk : frozen_chunks_) {
    fill_initial(chunk, /*trainable=*/false, initial);
    ops::cast(stored_, plan_.state.param_dtype, values_, DType::fp32, chunk.numel());
    parts_.state.write(StateKind::frozen, chunk, stored_);
  }
}

void StateAccess::restore_parameters() {
  for (const GrainRange chunk : chunks_) {
    load_values(StateKind::master, chunk);
    ops::cast(stored_, plan_.state.param_dtype, values_, DType::fp32, chunk.numel());
    parts_.state.write(StateKind::param, chunk, stored_);
  }
}

void StateAccess::fill_initial(GrainRange chunk, bool trainable, const InitialValues& initial) {
  std::fill_n(values_, chunk.numel(), 0.0f);
  for_parameters(
      chunk, trainable,
      [&](const FlatBuffer&, const Parameter& parameter, int64_t first, int64_t count, int64_t at) {
        fill(parameter, first, {values_ + at, static_cast<size_t>(count)}, initial);
      });
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

void StateAccess::read_state(StateKind kind, GrainRange chunk, std::byte* out) {
  if (parts_.beside_steps != nullptr) {
    parts_.state.read(kind, chunk, out, *parts_.beside_steps);
  } else {
    parts_.state.read(kind, chunk, out);
  }
}

void StateAccess::load_values(StateKind kind, GrainRange chunk) {
  const Codec codec = plan_.state.codec(kind);
  if (codec == Codec::none) {
    std::fill_n(values_, chunk.numel(), 0.0f);
    return;
  }
  read_state(kind, chunk, stored_);
  std::byte* param = nullptr;
  if (codec == Codec::split16) {
    param = stored_ + plan_.state.padded_bytes(kind, chunk.grains());
    read_state(StateKind::param, chunk, param);
  }
  ops::decode_state({kind, codec, stored_, param, values_, chunk.numel()});
}

std::vector<float> StateAccess::read(const ParameterRef& ref, StateKind kind) {
  const FlatParameter& parameter = plan_.layout.parameter(ref);
  const Unit& unit = plan_.layout.units()[static_cast<size_t>(ref.unit)];
  if (!ref.trainable && kind != StateKind::param) {
    throw ConfigError(fmt::format("'{}' is frozen: it has no {}", parameter.spec.name, name(kind)));
  }
  const FlatBuffer& flat = ref.trainable ? unit.trainable : unit.frozen;
  std::vector<float> values(static_cast<size_t>(parameter.numel()));
  if (!ref.trainable) {
    read_plain(held(flat, parameter), StateKind::frozen, values);
  } else if (kind == StateKind::param || kind == StateKind::grad) {
    read_plain(held(flat, parameter), kind, values);
  } else {
    read_encoded(held(flat, parameter), kind, values);
  }
  share(flat, parameter, values);
  return values;
}

void StateAccess::read_plain(const Held& here, StateKind kind, std::vector<float>& values) {
  const auto& chunks = kind == StateKind::frozen ? frozen_chunks_ : chunks_;
  const DType dtype = kind == StateKind::grad ? plan_.state.grad_dtype : plan_.state.param_dtype;
  for_chunks(chunks, here.part, [&](GrainRange chunk, Range part) {
    const auto skipped = static_cast<size_t>(part.begin - elements(chunk).begin);
    parts_.state.read(kind, chunk, stored_);
    ops::cast(values.data() + (part.begin - here.begin), DType::fp32,
              stored_ + skipped * size_bytes(dtype), dtype, part.end - part.begin);
  });
}

void StateAccess::read_encoded(const Held& here, StateKind kind, std::vector<float>& values) {
  for_chunks(chunks_, here.part, [&](GrainRange chunk, Range part) {
    load_values(kind, chunk);
    std::copy_n(values_ + (part.begin - elements(chunk).begin), part.end - part.begin,
                values.data() + (part.begin - here.begin));
  });
}

// Ranks exchange pieces of one length, of which each has filled what it holds.
void StateAccess::share(const FlatBuffer& flat, const FlatParameter& parameter,
                        std::vector<float>& values) {
  const int ranks = flat.shards;
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
  for_chunks(chunks_, here.part, [&](GrainRange chunk, Range part) {
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
    auto mine = grain_hashes(kDigestKinds[k]);
    if (plan_.layout.state_shards() == 1) {
      hashes[k] = std::move(mine);
      continue;
    }
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
