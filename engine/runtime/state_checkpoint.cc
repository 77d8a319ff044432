// Training state to and from a checkpoint, chunk by chunk.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "engine/checkpoint/moment_tensors.h"
#include "engine/runtime/state_access.h"
#include "kernels/ops/optimizer_ops.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

constexpr std::array<StateKind, 2> kMoments = {StateKind::exp_avg, StateKind::exp_avg_sq};

std::vector<int64_t> dimensions(const Shape& shape) {
  std::vector<int64_t> dims;
  for (size_t i = 0; i < shape.rank; ++i) dims.push_back(shape[i]);
  return dims;
}

std::span<std::byte> bytes_at(std::byte* data, int64_t count) {
  return {data, static_cast<size_t>(count)};
}

}  // namespace

bool StateAccess::saves(const FlatBuffer& flat) const {
  return flat.shards > 1 || plan_.layout.rank() == 0;
}

CheckpointWriter::Contents StateAccess::checkpoint_contents() const {
  CheckpointWriter::Contents contents;
  for (const Unit& unit : plan_.layout.units()) {
    for (const FlatParameter& parameter : unit.trainable.parameters) {
      contents[checkpoint_file(StateKind::master)].push_back(
          {parameter.spec.name, safetensors::ElementType::f32, dimensions(parameter.spec.shape)});
      for (const StateKind kind : kMoments) {
        const Codec codec = plan_.state.codec(kind);
        if (codec == Codec::none) continue;
        for (safetensors::Tensor& tensor :
             moment_tensors(parameter.spec.name, dimensions(parameter.spec.shape), codec)) {
          contents[checkpoint_file(kind)].push_back(std::move(tensor));
        }
      }
    }
  }
  contents.merge(frozen_contents());
  return contents;
}

CheckpointWriter::Contents StateAccess::frozen_contents() const {
  CheckpointWriter::Contents contents;
  for (const Unit& unit : plan_.layout.units()) {
    for (const FlatParameter& parameter : unit.frozen.parameters) {
      contents[checkpoint_file(StateKind::frozen)].push_back(
          {parameter.spec.name, safetensors::element_type(plan_.state.param_dtype),
           dimensions(parameter.spec.shape)});
    }
  }
  return contents;
}

void StateAccess::save(CheckpointWriter& checkpoint, const Between& between) {
  for (const GrainRange chunk : chunks_) {
    between();
    load_values(StateKind::master, chunk);
    const std::string file = checkpoint_file(StateKind::master);
    for_parameters(
        chunk, /*trainable=*/true,
        [&](const FlatBuffer& flat, const Parameter& p, int64_t first, int64_t count, int64_t at) {
          if (!saves(flat)) return;
          checkpoint.write(file, p.name, static_cast<uint64_t>(first) * sizeof(float),
                           std::as_bytes(std::span(values_ + at, static_cast<size_t>(count))));
        });
    for (const StateKind kind : kMoments) {
      if (plan_.state.codec(kind) != Codec::none) save_moment(kind, chunk, checkpoint);
    }
  }
  save_frozen(checkpoint, between);
}

void StateAccess::save_frozen(CheckpointWriter& checkpoint, const Between& between) {
  const auto element = static_cast<int64_t>(size_bytes(plan_.state.param_dtype));
  for (const GrainRange chunk : frozen_chunks_) {
    between();
    read_state(StateKind::frozen, chunk, stored_);
    for_parameters(
        chunk, /*trainable=*/false,
        [&](const FlatBuffer& flat, const Parameter& p, int64_t first, int64_t count, int64_t at) {
          if (!saves(flat)) return;
          checkpoint.write(checkpoint_file(StateKind::frozen), p.name,
                           static_cast<uint64_t>(first * element),
                           bytes_at(stored_ + at * element, count * element));
        });
  }
}

void StateAccess::save_moment(StateKind kind, GrainRange chunk, CheckpointWriter& checkpoint) {
  const Codec codec = plan_.state.codec(kind);
  const std::string file = checkpoint_file(kind);
  read_state(kind, chunk, stored_);
  for_parameters(
      chunk, /*trainable=*/true,
      [&](const FlatBuffer& flat, const Parameter& p, int64_t first, int64_t count, int64_t at) {
        if (!saves(flat)) return;
        write_moments(checkpoint, {.file = file,
                                   .parameter = p.name,
                                   .first = first,
                                   .count = count,
                                   .codec = codec,
                                   .stored = stored_,
                                   .at = at,
                                   .scratch = reinterpret_cast<std::byte*>(values_)});
      });
}

void StateAccess::check_contents(const CheckpointReader& checkpoint) const {
  const auto other = [&](const std::string& what) {
    return ConfigError(
        fmt::format("the checkpoint '{}' is of another model or optimizer ({}): "
                    "resume with the configuration it was written with",
                    checkpoint.path(), what));
  };
  size_t expected = 0;
  const auto expect = [&](const std::string& file, const safetensors::Tensor& wanted) {
    ++expected;
    const safetensors::Tensor* const tensor = checkpoint.find(file, wanted.name);
    if (tensor == nullptr) throw other(fmt::format("'{}' is not in its {}", wanted.name, file));
    if (tensor->shape != wanted.shape || tensor->type != wanted.type) {
      throw other(fmt::format("'{}' is {} [{}] there and {} [{}] here", wanted.name,
                              safetensors::name(tensor->type), fmt::join(tensor->shape, ", "),
                              safetensors::name(wanted.type), fmt::join(wanted.shape, ", ")));
    }
  };
  const Codec moment_codec = checkpoint.manifest().moment_codec;
  for (const auto& [file, tensors] : checkpoint_contents()) {
    const bool is_moment = file == checkpoint_file(StateKind::exp_avg) ||
                           file == checkpoint_file(StateKind::exp_avg_sq);
    if (is_moment) continue;
    for (const safetensors::Tensor& tensor : tensors) expect(file, tensor);
  }
  for (const Unit& unit : plan_.layout.units()) {
    for (const FlatParameter& parameter : unit.trainable.parameters) {
      for (const StateKind kind : kMoments) {
        if (plan_.state.codec(kind) == Codec::none) continue;
        for (const auto& tensor :
             moment_tensors(parameter.spec.name, dimensions(parameter.spec.shape), moment_codec)) {
          expect(checkpoint_file(kind), tensor);
        }
      }
    }
  }
  size_t there = 0;
  for (const auto& [file, pieces] : checkpoint.manifest().pieces) {
    there += checkpoint.header(file).tensors().size();
  }
  if (there != expected) {
    throw other(fmt::format("it has {} tensors where {} are wanted", there, expected));
  }
}

void StateAccess::load(CheckpointReader& checkpoint) {
  check_contents(checkpoint);
  for (const GrainRange chunk : chunks_) {
    std::fill_n(values_, chunk.numel(), 0.0f);
    for_parameters(
        chunk, /*trainable=*/true,
        [&](const FlatBuffer&, const Parameter& p, int64_t first, int64_t count, int64_t at) {
          checkpoint.read(
              checkpoint_file(StateKind::master), p.name,
              static_cast<uint64_t>(first) * sizeof(float),
              std::as_writable_bytes(std::span(values_ + at, static_cast<size_t>(count))));
        });
    store_weights(chunk);
    for (const StateKind kind : kMoments) {
      if (plan_.state.codec(kind) != Codec::none) load_moment(kind, chunk, checkpoint);
    }
  }
  load_frozen(checkpoint);
}

void StateAccess::load_frozen(CheckpointReader& checkpoint) {
  const auto element = static_cast<int64_t>(size_bytes(plan_.state.param_dtype));
  for (const GrainRange chunk : frozen_chunks_) {
    std::memset(stored_, 0, static_cast<size_t>(chunk.numel() * element));
    for_parameters(
        chunk, /*trainable=*/false,
        [&](const FlatBuffer&, const Parameter& p, int64_t first, int64_t count, int64_t at) {
          checkpoint.read(checkpoint_file(StateKind::frozen), p.name,
                          static_cast<uint64_t>(first * element),
                          bytes_at(stored_ + at * element, count * element));
        });
    parts_.state.write(StateKind::frozen, chunk, stored_);
  }
}

void StateAccess::load_moment(StateKind kind, GrainRange chunk, CheckpointReader& checkpoint) {
  const Codec there = checkpoint.manifest().moment_codec;
  const Codec here = plan_.state.codec(kind);
  const std::string file = checkpoint_file(kind);
  std::memset(stored_, 0, static_cast<size_t>(stored_bytes(there, chunk.numel())));
  for_parameters(
      chunk, /*trainable=*/true,
      [&](const FlatBuffer&, const Parameter& p, int64_t first, int64_t count, int64_t at) {
        read_moments(checkpoint, {.file = file,
                                  .parameter = p.name,
                                  .first = first,
                                  .count = count,
                                  .codec = there,
                                  .stored = stored_,
                                  .at = at,
                                  .scratch = reinterpret_cast<std::byte*>(values_)});
      });
  if (there != here) {
    ops::decode_state({kind, there, stored_, nullptr, values_, chunk.numel()});
    const auto key = static_cast<uint32_t>(checkpoint.manifest().run.step);
    ops::encode_moments(kind, here, values_, chunk.numel(), key, stored_);
  }
  parts_.state.write(kind, chunk, stored_);
}

}  // namespace strata::engine
