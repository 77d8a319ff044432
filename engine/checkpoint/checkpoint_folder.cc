#include "engine/checkpoint/checkpoint_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <optional>
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

// Of a path that ends in step-N; others are not ours.
std::optional<int64_t> step_of(const std::string& path) {
  const std::string name = fs::path(path).filename().string();
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  const char* const end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (parsed.ec != std::errc() || parsed.ptr != end || step < 0) return std::nullopt;
  return step;
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
  std::vector<std::pair<int64_t, std::string>> found;
  for (const std::string& path : io::list_directory(path_)) {
    const std::optional<int64_t> step = step_of(path);
    if (step && is_checkpoint(path)) found.emplace_back(*step, path);
  }
  std::sort(found.begin(), found.end());
  std::vector<std::string> paths;
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
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
  }
  for (const std::string& path : io::list_directory(path_)) {
    const bool is_unfinished = path.ends_with(kUnfinishedSuffix);
    const std::string finished =
        is_unfinished ? path.substr(0, path.size() - std::strlen(kUnfinishedSuffix)) : path;
    if (!step_of(finished) || (!is_unfinished && is_checkpoint(path))) continue;
    fs::remove_all(path, error);
    check(error, "remove", path);
  }
}

}  // namespace strata::engine
