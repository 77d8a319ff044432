// strata checkpoint: look at checkpoints, check them, and write their weights in other ways.
#include "tools/checkpoint.h"

#include <fmt/format.h>

#include <cstdio>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/checkpoint/checkpoint_values.h"
#include "engine/checkpoint/recode.h"
#include "engine/checkpoint/run_directory.h"
#include "strata/error.h"
#include "strata/gpt2_files.h"
#include "tools/command.h"
#include "tools/work_progress.h"

namespace strata::tools {
namespace {

using engine::CheckpointReader;

const std::map<std::string, DType> kDTypes = {
    {"bf16", DType::bf16}, {"fp16", DType::fp16}, {"fp32", DType::fp32}};
const std::map<std::string, Codec> kMomentCodecs = {
    {"bf16", Codec::bf16}, {"fp32", Codec::fp32}, {"int8", Codec::int8}};

void verify(const std::string& path) {
  CheckpointReader checkpoint(path);
  engine::check_moments(checkpoint);
  WorkProgress progress("checked", tensor_bytes(checkpoint));
  checkpoint.verify([&](uint64_t bytes) { progress.add(bytes); });
  fmt::print("{}: step {}, {} bytes checked, as they were written\n", path,
             checkpoint.manifest().run.step, progress.done_bytes());
  std::fflush(stdout);
}

void add_verify(CLI::App& parent) {
  auto paths = std::make_shared<std::vector<std::string>>();
  CLI::App* command = parent.add_subcommand(
      "verify",
      "Read everything in checkpoints, and compare it with the hashes it was written with");
  command
      ->add_option("PATH", *paths,
                   "Checkpoints, or runs' directories, of which all checkpoints are read")
      ->required();
  command->footer(
      "The first damage that is found ends it, with exit code 1 and a line that names the file "
      "and\n"
      "the byte in it. Of a checkpoint that is as it was written the number of bytes is printed.");
  command->callback([paths] {
    for (const std::string& path : *paths) {
      newest_checkpoint(path);
      for (const std::string& checkpoint : engine::checkpoints_of(path)) verify(checkpoint);
    }
  });
}

struct ExportOptions {
  std::string path;
  std::string directory;
  std::string dtype = "bf16";
  uint64_t file_bytes = models::Gpt2WriteOptions{}.file_bytes;
};

void export_weights(const ExportOptions& options) {
  CheckpointReader checkpoint(newest_checkpoint(options.path));
  const engine::Gpt2InCheckpoint gpt2 = engine::gpt2_of(checkpoint);
  const Model model = models::gpt2(gpt2.config, gpt2.tiles);
  engine::CheckpointValues values(checkpoint, model);
  const auto parameters = static_cast<uint64_t>(model.num_parameters());
  WorkProgress progress("exported", parameters * sizeof(float));
  models::write_gpt2(options.directory, gpt2.config,
                     [&](std::string_view name, int64_t first, std::span<float> out) {
                       values.read(name, first, out);
                       progress.add(out.size_bytes());
                     },
                     {kDTypes.at(options.dtype), options.file_bytes});
  fmt::print("{}: {} parameters of step {}, in {}\n", options.directory, parameters,
             checkpoint.manifest().run.step, options.dtype);
}

void add_export(CLI::App& parent) {
  auto options = std::make_shared<ExportOptions>();
  CLI::App* command = parent.add_subcommand(
      "export", "Write a GPT-2's weights as Hugging Face's transformers opens them");
  command->add_option("PATH", options->path, kPathHelp)->required();
  command->add_option("DIR", options->directory, "The directory to write, a new or an empty one")
      ->required();
  command
      ->add_option("--dtype", options->dtype,
                   "What the master weights are rounded to: bf16, fp16 or fp32, which keeps them "
                   "as they are")
      ->check(CLI::IsMember(kDTypes))
      ->capture_default_str();
  command
      ->add_option("--file-bytes", options->file_bytes,
                   "More weights than this are divided among several files")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->footer(
      "The weights are the master weights, and frozen parameters as they are. What is read is\n"
      "checked against its hashes. Weights that were trained in tiles are put together again, for\n"
      "which the largest of them must fit into memory.\n"
      "Example: strata checkpoint export runs/one gpt2-of-mine --dtype fp16");
  command->callback([options] { export_weights(*options); });
}

struct ReshardOptions {
  std::string path;
  std::string directory;
  std::string moments;  // empty: as they are
};

void reshard(const ReshardOptions& options) {
  CheckpointReader checkpoint(newest_checkpoint(options.path));
  const Codec before = checkpoint.manifest().moment_codec;
  const Codec after = options.moments.empty() ? before : kMomentCodecs.at(options.moments);
  WorkProgress progress("read", tensor_bytes(checkpoint));
  engine::recode_checkpoint(checkpoint, {.path = options.directory,
                                         .moments = after,
                                         .progress = [&](uint64_t bytes) { progress.add(bytes); }});
  const CheckpointReader written(options.directory);
  fmt::print("{}: step {}, {} moments, which were {}; {} bytes of tensors, which were {}\n",
             options.directory, written.manifest().run.step, name(after), name(before),
             tensor_bytes(written), tensor_bytes(checkpoint));
}

void add_reshard(CLI::App& parent) {
  auto options = std::make_shared<ReshardOptions>();
  CLI::App* command = parent.add_subcommand(
      "reshard", "Write a checkpoint anew, with its moments kept in another way");
  command->add_option("PATH", options->path, kPathHelp)->required();
  command->add_option("NEWDIR", options->directory, "The checkpoint to write, a new directory")
      ->required();
  command
      ->add_option("--moments", options->moments,
                   "How to keep the moments: fp32, bf16 or int8; as they are if not given")
      ->check(CLI::IsMember(kMomentCodecs));
  command->footer(
      "It is not needed for training to go on with another number of ranks, ZeRO stage, placement\n"
      "or codec: checkpoints hold whole tensors, and any run of the model loads them. It is for\n"
      "archives, and for copies whose every byte was checked against its hash on the way.\n"
      "Moments stay exact where the new codec holds their values, as fp32 does all; to bf16 and\n"
      "int8 others are rounded, stochastically, and the same way every time.\n"
      "Example: strata checkpoint reshard runs/one archive/one --moments int8");
  command->callback([options] { reshard(*options); });
}

}  // namespace

std::string newest_checkpoint(const std::string& path) {
  const std::vector<std::string> found = engine::checkpoints_of(path);
  if (!found.empty()) return found.back();
  throw ConfigError(fmt::format(
      "the run in '{}' has no checkpoint yet: it saves one at its end, and on the way with "
      "--checkpoint-every",
      path));
}

uint64_t tensor_bytes(const CheckpointReader& checkpoint, const std::string& file) {
  uint64_t bytes = 0;
  for (const auto& tensor : checkpoint.header(file).tensors()) bytes += tensor.bytes;
  return bytes;
}

uint64_t tensor_bytes(const CheckpointReader& checkpoint) {
  uint64_t bytes = 0;
  for (const auto& [file, pieces] : checkpoint.manifest().pieces) {
    bytes += tensor_bytes(checkpoint, file);
  }
  return bytes;
}

void add_checkpoint(CLI::App& app) {
  CLI::App* checkpoint =
      app.add_subcommand("checkpoint", "Look at checkpoints, check them, and export their weights");
  checkpoint->require_subcommand(1);
  add_checkpoint_inspect(*checkpoint);
  add_verify(*checkpoint);
  add_export(*checkpoint);
  add_reshard(*checkpoint);
}

}  // namespace strata::tools
