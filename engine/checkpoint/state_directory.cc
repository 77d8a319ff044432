#include "engine/checkpoint/state_directory.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "engine/checkpoint/run_directory.h"
#include "engine/config/json_text.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "strata-state-1";
constexpr std::string_view kFolderPrefix = "strata-";
constexpr const char* kLockSuffix = ".lock";

std::string folder_in(const std::string& path, const std::string& run_id) {
  return fmt::format("{}/{}{}", path, kFolderPrefix, run_id);
}

std::string rank_name(int rank) { return fmt::format("rank-{}", rank); }

io::FileLock take_place(const std::vector<std::string>& folders, int rank) {
  for (const std::string& folder : folders) io::make_directories(folder);
  return lock_or_refuse(fmt::format("{}/{}{}", folders.front(), rank_name(rank), kLockSuffix),
                        fmt::format("the state in '{}'", folders.front()));
}

Json read_json(const std::string& path) {
  try {
    Json json = parse_json_object(read_text_file(path), path);
    if (json.value("format", Json()) == kFormat) return json;
  } catch (const ConfigError& error) {
    throw CorruptionError(error.what());
  }
  throw CorruptionError(
      fmt::format("'{}' was not written by this version of Strata, or is damaged", path));
}

template <typename T>
T field(const Json& json, const char* key, const std::string& path) {
  try {
    return json.at(key).get<T>();
  } catch (const Json::exception&) {
    throw CorruptionError(fmt::format("'{}' lacks \"{}\", or has it of another type", path, key));
  }
}

void remove_if_there(const std::string& path) {
  std::error_code ignored;
  fs::remove(path, ignored);
}

// A rank's files in a folder; what others know them by, last, so that one who is stopped amid them
// leaves to the next what he began. At worst the folder itself stays, empty.
void remove_rank(const std::string& folder, const std::string& rank) {
  for (const char* suffix : {".state", ".journal", ".json.new", ".lock", ".json"}) {
    remove_if_there(folder + "/" + rank + suffix);
  }
  remove_if_there(folder);  // stays while it is not empty
}

// The file system that a path lies on, or would.
uint64_t device_of(fs::path path) {
  struct stat info = {};
  while (::stat(path.c_str(), &info) != 0) {
    if (errno != ENOENT || !path.has_parent_path() || path == path.parent_path()) return 0;
    path = path.parent_path();
  }
  return info.st_dev;
}

// Whether a rank's description is of a run of this machine whose directory is gone: not there on
// the file system that it was on, which is. What cannot be read is not ours to judge.
bool is_abandoned(const Json& json, const std::string& path, const std::string& run_id) {
  if (field<std::string>(json, "host", path) != io::host_name()) return false;
  const auto directory = field<std::string>(json, "run_directory", path);
  if (device_of(directory) != field<uint64_t>(json, "device", path)) return false;
  return !RunDirectory::exists(directory) || RunDirectory::read(directory).id != run_id;
}

}  // namespace

StateDirectory::StateDirectory(const Owner& owner, std::vector<std::string> paths)
    : owner_(owner), paths_(std::move(paths)), lock_(take_place(folders(), owner.rank)) {}

std::vector<std::string> StateDirectory::folders() const {
  std::vector<std::string> folders;
  for (const std::string& path : paths_) folders.push_back(folder_in(path, owner_.run_id));
  return folders;
}

std::string StateDirectory::file(size_t path, const char* suffix) const {
  return fmt::format("{}/{}{}", folder_in(paths_[path], owner_.run_id), rank_name(owner_.rank),
                     suffix);
}

uint64_t StateDirectory::bytes_of(const Owner& owner, const std::vector<std::string>& paths) {
  uint64_t bytes = 0;
  for (const std::string& path : paths) {
    for (const char* suffix : {".state", ".journal"}) {
      std::error_code error;
      const auto size = fs::file_size(
          folder_in(path, owner.run_id) + "/" + rank_name(owner.rank) + suffix, error);
      if (!error) bytes += size;
    }
  }
  return bytes;
}

bool StateDirectory::has_files() const {
  const std::string path = file(0, ".json");
  std::error_code ignored;
  return fs::exists(path, ignored) && field<bool>(read_json(path), "complete", path);
}

io::Stripes StateDirectory::stripes() const {
  const std::string path = file(0, ".json");
  const Json json = read_json(path);
  return {folders(), field<std::vector<uint32_t>>(json, "weights", path),
          field<uint64_t>(json, "stripe_bytes", path)};
}

StateDirectory::Files StateDirectory::create(const io::Stripes& stripes, uint64_t state_bytes,
                                             uint64_t journal_bytes, uint64_t layout,
                                             const io::BlockFileOptions& options, LogSink& log) {
  Json json = {{"format", kFormat},
               {"complete", false},
               {"run_directory", owner_.run_directory},
               {"device", device_of(owner_.run_directory)},
               {"host", io::host_name()},
               {"paths", paths_},
               {"layout", fmt::format("{:016x}", layout)},
               {"weights", stripes.weights},
               {"stripe_bytes", stripes.block_bytes}};
  const auto describe = [&] { io::write_durably(file(0, ".json"), json.dump(2) + "\n"); };
  describe();
  for (size_t i = 0; i < paths_.size(); ++i) {
    for (const char* suffix : {".state", ".journal"}) remove_if_there(file(i, suffix));
  }
  const io::Stripes named = {folders(), stripes.weights, stripes.block_bytes};
  Files files{
      io::StripedFile::create(named, rank_name(owner_.rank) + ".state", state_bytes, options, log),
      io::BlockFile::create(file(0, ".journal"), journal_bytes, options, log)};
  json["complete"] = true;
  describe();
  return files;
}

StateDirectory::Files StateDirectory::open(uint64_t state_bytes, uint64_t journal_bytes,
                                           uint64_t layout, const io::BlockFileOptions& options,
                                           LogSink& log) {
  const std::string path = file(0, ".json");
  if (field<std::string>(read_json(path), "layout", path) != fmt::format("{:016x}", layout)) {
    throw ConfigError(fmt::format(
        "the state in '{}' is of another model, optimizer, number of ranks or placement: resume "
        "with the configuration it was written with, or from a checkpoint into a new directory",
        folder_in(paths_.front(), owner_.run_id)));
  }
  Files files{io::StripedFile::open(stripes(), rank_name(owner_.rank) + ".state", state_bytes,
                                    options, log),
              io::BlockFile::open(file(0, ".journal"), options, log)};
  if (files.journal.bytes() != journal_bytes) {
    throw CorruptionError(fmt::format("'{}' has {} bytes where {} were written",
                                      files.journal.path(), files.journal.bytes(), journal_bytes));
  }
  return files;
}

// The first folder has what says where the others are.
void StateDirectory::remove() {
  const std::vector<std::string> all = folders();
  for (auto folder = all.rbegin(); folder != all.rend(); ++folder) {
    remove_rank(*folder, rank_name(owner_.rank));
  }
}

void StateDirectory::discard() {
  for (size_t i = 0; i < paths_.size(); ++i) {
    for (const char* suffix : {".json", ".state", ".journal"}) remove_if_there(file(i, suffix));
  }
}

void StateDirectory::clean(const std::vector<std::string>& paths, LogSink& log) {
  for (const std::string& path : paths) {
    for (const std::string& folder : io::list_directory(path)) {
      const std::string name = fs::path(folder).filename().string();
      if (!name.starts_with(kFolderPrefix)) continue;
      const std::string run_id = name.substr(kFolderPrefix.size());
      for (const fs::path file : io::list_directory(folder)) {
        if (file.extension() != ".json") continue;
        try {
          const Json json = read_json(file.string());
          if (!is_abandoned(json, file.string(), run_id)) continue;
          // Read before the lock is taken: whoever cleans here as well may be through by then.
          const auto parts = field<std::vector<std::string>>(json, "paths", file.string());
          const std::string rank = file.stem().string();
          const auto lock = io::FileLock::take(folder + "/" + rank + kLockSuffix);
          if (!lock) continue;
          log.log(LogLevel::info,
                  fmt::format("removing {} in {}: its run's directory is gone", rank, folder));
          for (const std::string& part : parts) {
            if (part != path) remove_rank(folder_in(part, run_id), rank);
          }
          remove_rank(folder, rank);
        } catch (const Error& error) {
          log.log(LogLevel::warning,
                  fmt::format("{} is left as it is: {}", file.string(), error.what()));
        }
      }
    }
  }
}

}  // namespace strata::engine
