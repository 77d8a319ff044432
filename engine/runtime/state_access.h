// Training state by parameter name: initial values, reading, writing, hashing. The verbs around
// training, not of it: they block, and run between steps. Reading and hashing are collective.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/checkpoint/checkpoint_reader.h"
#include "engine/checkpoint/checkpoint_writer.h"
#include "engine/comm/communicator.h"
#include "engine/plan/planner.h"
#include "offload/training_state.h"
#include "strata/parameter_reader.h"

namespace strata::engine {

class StateAccess {
 public:
  // All must outlive this object.
  struct Parts {
    offload::TrainingState& state;
    Communicator& comm;
    std::span<std::byte> memory;  // pinned, plan.transfer_bytes()
    // Null: the state between steps. Otherwise where save() reads while they go on, on a thread of
    // its own; no other verb is for that.
    const offload::TrainingState::Source* beside_steps = nullptr;
  };
  StateAccess(const Plan& plan, const Parts& parts);

  // What parameters start with: what `given` reads or, where that is empty, what their initializers
  // make of (seed, parameter name, element) alone.
  struct InitialValues {
    uint64_t seed = 0;
    const ParameterReader& given;
  };
  // Writes initial master weights and parameters, and zero moments: this rank's shards.
  void initialize(const InitialValues& initial);
  // Trainable parameters from the master weights, that a run recovered.
  void restore_parameters();

  // A checkpoint's files, of which save() writes this rank's part. Saving and loading read and
  // write the state in pieces that fit this object's memory, and take no more.
  CheckpointWriter::Contents checkpoint_contents() const;
  // `between` is called again and again in between; what it throws ends the saving.
  using Between = std::function<void()>;
  void save(
      CheckpointWriter& checkpoint, const Between& between = [] {});
  // Throws ConfigError, before anything is changed, for a checkpoint of other parameters, or with
  // other moments than this optimizer's. What another codec kept is rounded to this one's.
  void load(CheckpointReader& checkpoint);
  // The same of frozen parameters alone.
  CheckpointWriter::Contents frozen_contents() const;
  void save_frozen(
      CheckpointWriter& checkpoint, const Between& between = [] {});
  void load_frozen(CheckpointReader& checkpoint);

  // The whole parameter, on every rank.
  std::vector<float> read(const ParameterRef& ref, StateKind kind);
  // This rank's shard of it.
  void write(const ParameterRef& ref, std::span<const float> values);

  // 128-bit hash of master, moments and parameters, whatever codec keeps them: XXH3 over the hashes
  // of their grains' values, unit by unit, kind by kind, each in flat-buffer order; then of step
  // and loss scale. A grain never belongs to two ranks, and padding behind a unit's content is left
  // out, so neither placement nor world size enters. The same on every rank.
  std::string digest(int64_t step, double loss_scale);

 private:
  // Elements of a shard space.
  struct Range {
    int64_t begin = 0;
    int64_t end = 0;
    bool empty() const { return end <= begin; }
  };
  // A parameter in a shard space: where it would begin if all of its flat buffer lay there, and
  // the part of it that this rank holds.
  struct Held {
    int64_t begin = 0;
    Range part;
  };
  static Range elements(GrainRange grains) {
    return {grains.begin * kGrainNumel, grains.end * kGrainNumel};
  }
  static Range intersect(Range a, Range b) {
    return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
  }
  Held held(const FlatBuffer& flat, const FlatParameter& parameter) const;
  // Calls visit(chunk, part of `part` in it).
  template <typename Visit>
  static void for_chunks(const std::vector<GrainRange>& chunks, Range part, const Visit& visit);

  // Calls visit(flat buffer, parameter, first, count, at) for the parts of parameters that lie in a
  // chunk: `count` elements from the parameter's `first` on, from the chunk's element `at` on.
  template <typename Visit>
  void for_parameters(GrainRange chunk, bool trainable, const Visit& visit) const {
    const Range all = elements(chunk);
    for (const Unit& unit : plan_.layout.units()) {
      const FlatBuffer& flat = trainable ? unit.trainable : unit.frozen;
      for (const FlatParameter& parameter : flat.parameters) {
        const Held here = held(flat, parameter);
        const Range part = intersect(here.part, all);
        if (part.empty()) continue;
        visit(flat, parameter.spec, part.begin - here.begin, part.end - part.begin,
              part.begin - all.begin);
      }
    }
  }
  // Initial values of a chunk of trainable or frozen parameters, into values_.
  void fill_initial(GrainRange chunk, bool trainable, const InitialValues& initial);
  // Writes values_ as master weights and, cast, as parameters of the chunk.
  void store_weights(GrainRange chunk);
  // The state where it is, or beside steps where that is said.
  void read_state(StateKind kind, GrainRange chunk, std::byte* out);
  // Whether this rank saves its part of a flat buffer: where every rank has all of it, one does.
  bool saves(const FlatBuffer& flat) const;
  void save_moment(StateKind kind, GrainRange chunk, CheckpointWriter& checkpoint);
  void check_contents(const CheckpointReader& checkpoint) const;
  void load_moment(StateKind kind, GrainRange chunk, CheckpointReader& checkpoint);
  void store_zero_moments(GrainRange chunk);
  // Zeroes the moments of elements of the chunk, whole blocks.
  void clear_moments(GrainRange chunk, Range part);
  // Brings a kind's grains into values_, as fp32.
  void load_values(StateKind kind, GrainRange chunk);
  // A kind that is kept as plain numbers, into `values`, and one that a codec keeps.
  void read_plain(const Held& here, StateKind kind, std::vector<float>& values);
  void read_encoded(const Held& here, StateKind kind, std::vector<float>& values);
  // Completes a parameter's values, of which each rank has its part.
  void share(const FlatBuffer& flat, const FlatParameter& parameter, std::vector<float>& values);
  using GrainHash = std::array<std::byte, 16>;
  // Of this rank's grains of one kind.
  std::vector<GrainHash> grain_hashes(StateKind kind);

  const Plan& plan_;
  const Parts parts_;
  float* const values_;
  std::byte* const stored_;               // a kind as it is kept
  const std::vector<GrainRange> chunks_;  // what is moved at a time, in order
  const std::vector<GrainRange> frozen_chunks_;
};

}  // namespace strata::engine
