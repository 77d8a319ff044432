#include "engine/checkpoint/run_directory.h"

#include <fmt/format.h>

#include <cstdint>
#include <filesystem>
#include <random>
#include <system_error>
#include <utility>

#include "engine/config/json_text.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "strata-run-2";

std::string record_path(const std::string& directory) { return directory + "/run.json"; }

std::string new_id() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}", random(), random());
}

}  // namespace

CheckpointFolder checkpoint_folder(const std::string& run) {
  return CheckpointFolder(run + "/checkpoints");
}

std::vector<std::string> checkpoints_of(const std::string& path) {
  if (RunDirectory::exists(path)) return checkpoint_folder(path).all();
  if (CheckpointFolder::is_checkpoint(path)) return {path};
  throw ConfigError(
      fmt::format("'{}' is neither a run's directory (run.json) nor a checkpoint "
                  "(manifest.json): name one of them",
                  path));
}

io::FileLock lock_or_refuse(const std::string& path, const std::string& what) {
  std::optional<io::FileLock> lock = io::FileLock::take(path);
  if (lock) return std::move(*lock);
  throw ConfigError(
      fmt::format("{} belongs to {}, which is training it: stop that one first, or "
                  "name another directory",
                  what, io::FileLock::holder(path)));
}

bool RunDirectory::exists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(record_path(path), ignored);
}

RunRecord RunDirectory::read(const std::string& path) {
  const std::string file = record_path(path);
  const auto wrong = [&](const char* what) {
    return CorruptionError(
        fmt::format("'{}' {}: it was not written by this version of Strata, or "
                    "is damaged",
                    file, what));
  };
  if (!exists(path)) {
    throw ConfigError(
        fmt::format("'{}' has no run to go on with (no run.json): name the directory "
                    "that --output named, or a checkpoint",
                    path));
  }
  Json json;
  try {
    json = parse_json_object(read_text_file(file), file);
  } catch (const ConfigError& error) {
    throw CorruptionError(error.what());
  }
  if (json.value("format", Json()) != kFormat) throw wrong("has no known format");
  try {
    return {json.at("id").get<std::string>(),
            json.at("state_paths").get<std::vector<std::string>>(),
            json.at("world_size").get<int>(), json.at("has_origin").get<bool>(),
            json.at("has_state").get<bool>()};
  } catch (const Json::exception&) {
    throw wrong("lacks id, state_paths, world_size, has_origin or has_state");
  }
}

RunDirectory::RunDirectory(std::string path, io::FileLock lock)
    : path_(std::move(path)), lock_(std::move(lock)) {}

RunDirectory RunDirectory::create(const std::string& path, bool has_origin) {
  io::make_directories(path);
  const std::string absolute = fs::canonical(path).string();
  RunDirectory run(absolute,
                   lock_or_refuse(absolute + "/lock", fmt::format("the run in '{}'", path)));
  if (exists(absolute)) {
    throw ConfigError(fmt::format(
        "'{}' has a run already: go on with it (--resume), or name another directory", path));
  }
  run.write({.id = new_id(), .has_origin = has_origin});
  return run;
}

RunDirectory RunDirectory::open(const std::string& path) {
  RunRecord record = read(path);
  const std::string absolute = fs::canonical(path).string();
  RunDirectory run(absolute,
                   lock_or_refuse(absolute + "/lock", fmt::format("the run in '{}'", path)));
  run.record_ = std::move(record);
  return run;
}

void RunDirectory::write(const RunRecord& record) {
  const Json json = {{"format", kFormat},
                     {"id", record.id},
                     {"world_size", record.world_size},
                     {"has_origin", record.has_origin},
                     {"has_state", record.has_state},
                     {"state_paths", record.state_paths}};
  io::write_durably(record_path(path_), json.dump(2) + "\n");
  record_ = record;
}

}  // namespace strata::engine
