#include "engine/checkpoint/recode.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <span>
#include <system_error>
#include <vector>

#include "engine/checkpoint/checkpoint_writer.h"
#include "engine/checkpoint/moment_tensors.h"
#include "engine/comm/lone_rank.h"
#include "kernels/ops/optimizer_ops.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

constexpr std::array<StateKind, 2> kMoments = {StateKind::exp_avg, StateKind::exp_avg_sq};
constexpr std::array<StateKind, 2> kCopied = {StateKind::master, StateKind::frozen};
constexpr int64_t kChunkNumel = 256 * kGrainNumel;  // that are in memory at a time

const std::vector<safetensors::Tensor>& tensors_of(const CheckpointReader& checkpoint,
                                                   StateKind kind) {
  static const std::vector<safetensors::Tensor> none;
  const std::string file = checkpoint_file(kind);
  return checkpoint.has(file) ? checkpoint.header(file).tensors() : none;
}

class Recoding {
 public:
  Recoding(CheckpointReader& from, const RecodeOptions& options)
      : from_(from),
        options_(options),
        rank_(),
        to_(options.path, contents(), rank_.comm()),
        stored_(static_cast<size_t>(kChunkNumel) * sizeof(float)),
        scratch_(stored_.size()),
        values_(static_cast<size_t>(kChunkNumel)) {}

  void run() {
    for (const StateKind kind : kCopied) {
      for (const safetensors::Tensor& tensor : tensors_of(from_, kind)) copy(kind, tensor);
    }
    for (const StateKind kind : kMoments) {
      if (!from_.has(checkpoint_file(kind))) continue;
      for (const safetensors::Tensor& tensor : tensors_of(from_, StateKind::master)) {
        for (int64_t at = 0; at < tensor.numel(); at += kChunkNumel) {
          recode(kind, tensor.name, at, std::min(kChunkNumel, tensor.numel() - at));
        }
      }
    }
    Manifest manifest = from_.manifest();
    manifest.moment_codec = options_.moments;
    to_.finish(std::move(manifest));
  }

 private:
  CheckpointWriter::Contents contents() const {
    CheckpointWriter::Contents contents;
    for (const StateKind kind : kCopied) {
      const std::string file = checkpoint_file(kind);
      if (from_.has(file)) contents[file] = tensors_of(from_, kind);
    }
    for (const StateKind kind : kMoments) {
      const std::string file = checkpoint_file(kind);
      if (!from_.has(file)) continue;
      for (const safetensors::Tensor& master : tensors_of(from_, StateKind::master)) {
        for (auto& tensor : moment_tensors(master.name, master.shape, options_.moments)) {
          contents[file].push_back(std::move(tensor));
        }
      }
    }
    return contents;
  }

  void copy(StateKind kind, const safetensors::Tensor& tensor) {
    const std::string file = checkpoint_file(kind);
    for (uint64_t at = 0; at < tensor.bytes; at += stored_.size()) {
      const auto bytes =
          std::span(stored_).first(std::min<uint64_t>(stored_.size(), tensor.bytes - at));
      from_.read(file, tensor.name, at, bytes);
      to_.write(file, tensor.name, at, bytes);
      options_.progress(bytes.size());
    }
  }

  // Elements of a parameter's moments; zeros behind them fill their last grain.
  void recode(StateKind kind, const std::string& parameter, int64_t first, int64_t count) {
    MomentPart part = {.file = checkpoint_file(kind),
                       .parameter = parameter,
                       .first = first,
                       .count = count,
                       .codec = from_.manifest().moment_codec,
                       .stored = stored_.data(),
                       .scratch = scratch_.data()};
    std::fill(stored_.begin(), stored_.end(), std::byte{0});
    read_moments(from_, part);
    options_.progress(static_cast<uint64_t>(stored_bytes(part.codec, count)));
    if (part.codec != options_.moments) {
      const int64_t numel = round_up(count, kGrainNumel);
      const auto key = static_cast<uint32_t>(from_.manifest().run.step);
      ops::decode_state({kind, part.codec, part.stored, nullptr, values_.data(), numel});
      ops::encode_moments(kind, options_.moments, values_.data(), numel, key, part.stored);
      part.codec = options_.moments;
    }
    write_moments(to_, part);
  }

  CheckpointReader& from_;
  const RecodeOptions& options_;
  LoneRank rank_;
  CheckpointWriter to_;
  std::vector<std::byte> stored_;   // moments as they are kept, or bytes that are copied
  std::vector<std::byte> scratch_;  // for int8's codes and scales
  std::vector<float> values_;
};

}  // namespace

void check_moments(const CheckpointReader& checkpoint) {
  const auto wrong = [&](const std::string& file, const std::string& tensor) {
    return CorruptionError(fmt::format(
        "'{}/{}': '{}' is not there as {} moments of the master weights are: the files are of "
        "different checkpoints, or damaged",
        checkpoint.path(), file, tensor, name(checkpoint.manifest().moment_codec)));
  };
  for (const StateKind kind : kMoments) {
    const std::string file = checkpoint_file(kind);
    if (!checkpoint.has(file)) continue;
    size_t expected = 0;
    for (const safetensors::Tensor& master : tensors_of(checkpoint, StateKind::master)) {
      for (const safetensors::Tensor& wanted :
           moment_tensors(master.name, master.shape, checkpoint.manifest().moment_codec)) {
        const safetensors::Tensor* const found = checkpoint.find(file, wanted.name);
        const bool is_same =
            found != nullptr && found->type == wanted.type && found->shape == wanted.shape;
        if (master.type != safetensors::ElementType::f32 || !is_same)
          throw wrong(file, wanted.name);
        ++expected;
      }
    }
    const auto& all = tensors_of(checkpoint, kind);
    if (all.size() != expected) throw wrong(file, all.back().name);
  }
}

void recode_checkpoint(CheckpointReader& from, const RecodeOptions& options) {
  std::error_code ignored;
  if (std::filesystem::exists(options.path, ignored)) {
    throw ConfigError(fmt::format("'{}' is there already: name a new directory", options.path));
  }
  check_moments(from);
  Recoding(from, options).run();
}

}  // namespace strata::engine
