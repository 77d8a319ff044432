#include "engine/checkpoint/checkpoint_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include "engine/checkpoint/manifest.h"
#include "io/durable_file.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";

void check(const std::error_code& error, const char* what, const std::string& path) {
  if (!error) return;
  throw IoError(fmt::format("cannot {} {}: {}", what, path, error.message()), path, 0,
                error.value());
}

}  // namespace

CheckpointFolder::CheckpointFolder(std::string path) : path_(std::move(path)) {}

bool CheckpointFolder::is_checkpoint(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path + "/" + kManifestName, ignored);
}

std::string CheckpointFolder::of_step(int64_t step) const {
  return fmt::format("{}/{}{:08}", path_, kPrefix, step);
}

std::vector<std::string> CheckpointFolder::all() const {
  std::vector<std::string> found;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(path_, ignored)) {
    const std::string name = entry.path().filename().string();
    const bool finished = name.starts_with(kPrefix) && !name.ends_with(kUnfinishedSuffix);
    if (finished && is_checkpoint(entry.path().string())) found.push_back(entry.path().string());
  }
  // Names of one length; longer ones are of later steps.
  std::sort(found.begin(), found.end(), [](const std::string& a, const std::string& b) {
    return std::pair(a.size(), a) < std::pair(b.size(), b);
  });
  return found;
}

std::string CheckpointFolder::newest() const {
  const std::vector<std::string> found = all();
  return found.empty() ? "" : found.back();
}

void CheckpointFolder::tidy(int keep) const {
  const std::vector<std::string> found = all();
  std::error_code error;
  if (!found.empty()) {
    const std::string link = path_ + "/latest";
    fs::remove(link + ".new", error);
    fs::create_symlink(fs::path(found.back()).filename(), link + ".new", error);
    check(error, "create", link);
    io::rename_durably(link + ".new", link);
  }
  const size_t surplus = keep > 0 && found.size() > static_cast<size_t>(keep)
                             ? found.size() - static_cast<size_t>(keep)
                             : 0;
  for (size_t i = 0; i < surplus; ++i) {
    // Without its manifest it is none any more, should this be interrupted.
    fs::remove(found[i] + "/" + kManifestName, error);
    check(error, "remove", found[i]);
    fs::remove_all(found[i], error);
    check(error, "remove", found[i]);
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(path_, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix) || entry.is_symlink()) continue;
    if (is_checkpoint(entry.path().string()) && !name.ends_with(kUnfinishedSuffix)) continue;
    fs::remove_all(entry.path(), error);
    check(error, "remove", entry.path().string());
  }
}

}  // namespace strata::engine
