// strata checkpoint inspect: what a checkpoint or a run says of itself.
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/checkpoint/run_directory.h"
#include "tools/checkpoint.h"

namespace strata::tools {
namespace {

using engine::CheckpointReader;
using engine::RunDirectory;
using Json = nlohmann::ordered_json;

struct InspectOptions {
  std::string path;
  bool tensors = false;
  bool json = false;
};

int64_t parameters_in(const CheckpointReader& checkpoint, StateKind kind) {
  const std::string file = engine::checkpoint_file(kind);
  int64_t numel = 0;
  if (!checkpoint.has(file)) return numel;
  for (const auto& tensor : checkpoint.header(file).tensors()) numel += tensor.numel();
  return numel;
}

Json describe_run(const std::string& path) {
  const engine::RunRecord run = RunDirectory::read(path);
  return {{"id", run.id}, {"world_size", run.world_size}, {"state_paths", run.state_paths}};
}

Json describe_files(const CheckpointReader& checkpoint) {
  Json files = Json::array();
  for (const auto& [file, pieces] : checkpoint.manifest().pieces) {
    const auto& header = checkpoint.header(file);
    files.push_back(
        {{"name", file}, {"tensors", header.tensors().size()}, {"bytes", header.file_bytes()}});
  }
  return files;
}

Json describe_tensors(const CheckpointReader& checkpoint) {
  Json tensors = Json::array();
  for (const auto& [file, pieces] : checkpoint.manifest().pieces) {
    for (const auto& tensor : checkpoint.header(file).tensors()) {
      tensors.push_back({{"file", file},
                         {"name", tensor.name},
                         {"dtype", safetensors::name(tensor.type)},
                         {"shape", tensor.shape}});
    }
  }
  return tensors;
}

Json describe_checkpoint(const std::string& path, bool tensors) {
  const CheckpointReader checkpoint(path);
  const engine::Manifest& manifest = checkpoint.manifest();
  const int64_t trainable = parameters_in(checkpoint, StateKind::master);
  const int64_t frozen = parameters_in(checkpoint, StateKind::frozen);
  const std::string& config = manifest.model_config;
  Json json = {{"path", path},
               {"step", manifest.run.step},
               {"seed", manifest.run.seed},
               {"loss_scale", manifest.run.loss_scale},
               {"data_position", manifest.run.data_position},
               {"model", manifest.model},
               {"model_config", config.empty() ? Json() : Json::parse(config)},
               {"parameters", trainable + frozen},
               {"frozen_parameters", frozen},
               {"moment_codec", name(manifest.moment_codec)},
               {"files", describe_files(checkpoint)}};
  if (tensors) json["tensors"] = describe_tensors(checkpoint);
  return json;
}

void print_run(const Json& run) {
  fmt::print("run {}\n", run["id"].get<std::string>());
  const auto paths = run["state_paths"].get<std::vector<std::string>>();
  if (paths.empty()) return;
  const int ranks = run["world_size"].get<int>();
  fmt::print("newer than its checkpoints: state files of {} rank{} in {}\n", ranks,
             ranks == 1 ? "" : "s", fmt::join(paths, ", "));
}

void print_checkpoint(const Json& checkpoint) {
  fmt::print("checkpoint {}\n", checkpoint["path"].get<std::string>());
  const double loss_scale = checkpoint["loss_scale"].get<double>();
  fmt::print("step {}, seed {}, {}, data position {}\n", checkpoint["step"].dump(),
             checkpoint["seed"].dump(),
             loss_scale == 0 ? "no loss scale" : fmt::format("loss scale {}", loss_scale),
             checkpoint["data_position"].dump());
  fmt::print("model: {}\n", checkpoint["model"].get<std::string>());
  fmt::print("{} parameters, of which {} frozen; moments in {}\n\n",
             checkpoint["parameters"].dump(), checkpoint["frozen_parameters"].dump(),
             checkpoint["moment_codec"].get<std::string>());
  fmt::print("{:<26}{:>10}{:>18}\n", "file", "tensors", "bytes");
  for (const Json& file : checkpoint["files"]) {
    fmt::print("{:<26}{:>10}{:>18}\n", file["name"].get<std::string>(), file["tensors"].dump(),
               file["bytes"].dump());
  }
  if (!checkpoint.contains("tensors")) return;
  fmt::print("\n{:<26}{:<6}{:<20}{}\n", "file", "dtype", "shape", "tensor");
  for (const Json& tensor : checkpoint["tensors"]) {
    fmt::print("{:<26}{:<6}{:<20}{}\n", tensor["file"].get<std::string>(),
               tensor["dtype"].get<std::string>(), tensor["shape"].dump(),
               tensor["name"].get<std::string>());
  }
}

void inspect(const InspectOptions& options) {
  const std::vector<std::string> found = engine::checkpoints_of(options.path);
  const bool is_run = RunDirectory::exists(options.path);
  const Json run = is_run ? describe_run(options.path) : Json();
  const Json checkpoint =
      found.empty() ? Json() : describe_checkpoint(found.back(), options.tensors);
  if (options.json) {
    const Json all = {{"run", run}, {"checkpoints", found}, {"checkpoint", checkpoint}};
    fmt::print("{}\n", all.dump(2, ' ', false, Json::error_handler_t::replace));
    return;
  }
  if (is_run) print_run(run);
  if (is_run) fmt::print("checkpoints: {}{}\n", found.size(), found.empty() ? "" : ", the newest:");
  if (!found.empty()) print_checkpoint(checkpoint);
}

}  // namespace

void add_checkpoint_inspect(CLI::App& checkpoint) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command = checkpoint.add_subcommand("inspect", "Say what a checkpoint or a run holds");
  command->add_option("PATH", options->path, kPathHelp)->required();
  command->add_flag("--tensors", options->tensors,
                    "List all tensors too, in the order of the files");
  command->add_flag("--json", options->json, "Print one JSON object");
  command->footer(
      "It reads the manifest and the beginnings of the files, and no weights: whether they are as\n"
      "they were written is what `strata checkpoint verify` says.");
  command->callback([options] { inspect(*options); });
}

}  // namespace strata::tools
