#include "io/striped_file.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <map>
#include <optional>
#include <system_error>
#include <utility>

#include "strata/error.h"

namespace strata::io {
namespace {

constexpr std::array<uint32_t, 1> kOnePath = {1};

dev_t file_system_of(const std::string& directory) {
  struct stat info = {};
  if (::stat(directory.c_str(), &info) != 0) {
    throw IoError(
        fmt::format("cannot look at {}: {}", directory, std::generic_category().message(errno)),
        directory, 0, errno);
  }
  return info.st_dev;
}

void check_counts(size_t directories, size_t weights) {
  if (directories == weights && weights > 0) return;
  throw ConfigError(
      fmt::format("striping over {} directories takes a weight for each, and {} are given",
                  directories, weights));
}

}  // namespace

StripedFile::StripedFile(BlockFile file)
    : pattern_(kOnePath, std::max<uint64_t>(file.bytes(), 1)),
      bytes_(file.bytes()),
      path_(file.path()),
      memory_alignment_(file.memory_alignment()),
      offset_alignment_(file.offset_alignment()) {
  files_.push_back(std::move(file));
}

StripedFile::StripedFile(std::vector<BlockFile> files, StripePattern pattern, uint64_t bytes)
    : files_(std::move(files)), pattern_(std::move(pattern)), bytes_(bytes) {
  for (const BlockFile& file : files_) {
    path_ += (path_.empty() ? "" : " + ") + file.path();
    memory_alignment_ = std::max(memory_alignment_, file.memory_alignment());
    offset_alignment_ = std::max(offset_alignment_, file.offset_alignment());
  }
}

template <typename Make>
StripedFile StripedFile::make(const Stripes& stripes, uint64_t bytes, const Make& make) {
  check_counts(stripes.directories.size(), stripes.weights.size());
  if (stripes.directories.size() == 1) return make(stripes.directories.front(), bytes);
  StripePattern pattern(stripes.weights, stripes.block_bytes);
  std::vector<BlockFile> files;
  for (size_t i = 0; i < stripes.directories.size(); ++i) {
    files.push_back(make(stripes.directories[i], pattern.file_bytes(i, bytes)));
  }
  StripedFile striped(std::move(files), std::move(pattern), bytes);
  if (const uint32_t unit = std::max(striped.offset_alignment_, striped.memory_alignment_);
      stripes.block_bytes % unit != 0) {
    throw ConfigError(
        fmt::format("stripes of {} bytes do not fit {}, which is moved in multiples of {}",
                    stripes.block_bytes, striped.path_, unit));
  }
  return striped;
}

StripedFile StripedFile::create_scratch(const Stripes& stripes, uint64_t bytes,
                                        const BlockFileOptions& options, LogSink& log) {
  return make(stripes, bytes, [&](const std::string& directory, uint64_t part) {
    return BlockFile::create_scratch(directory, part, options, log);
  });
}

StripedFile StripedFile::create(const Stripes& stripes, const std::string& name, uint64_t bytes,
                                const BlockFileOptions& options, LogSink& log) {
  std::vector<std::string> made;
  try {
    return make(stripes, bytes, [&](const std::string& directory, uint64_t part) {
      const std::string path = directory + "/" + name;
      BlockFile file = BlockFile::create(path, part, options, log);
      made.push_back(path);
      return file;
    });
  } catch (...) {
    for (const std::string& path : made) ::unlink(path.c_str());
    throw;
  }
}

StripedFile StripedFile::open(const Stripes& stripes, const std::string& name, uint64_t bytes,
                              const BlockFileOptions& options, LogSink& log) {
  return make(stripes, bytes, [&](const std::string& directory, uint64_t part) {
    BlockFile file = BlockFile::open(directory + "/" + name, options, log);
    if (file.bytes() != part) {
      throw CorruptionError(
          fmt::format("'{}' has {} bytes where {} were written", file.path(), file.bytes(), part));
    }
    return file;
  });
}

FileSpace::Run StripedFile::locate(uint64_t offset) const {
  if (files_.size() == 1) return files_.front().locate(offset);
  const StripePattern::Place place = pattern_.locate(offset);
  return {&files_[place.file], place.offset, place.bytes};
}

bool StripedFile::direct() const {
  return std::all_of(files_.begin(), files_.end(), [](const BlockFile& f) { return f.direct(); });
}

uint64_t striped_free_bytes(std::span<const std::string> directories,
                            std::span<const uint32_t> weights) {
  struct FileSystem {
    uint64_t free_bytes = 0;
    double share = 0;
  };
  std::optional<StripePattern> pattern;
  if (!weights.empty()) {
    check_counts(directories.size(), weights.size());
    pattern.emplace(weights, 1);
  }
  std::map<dev_t, FileSystem> file_systems;
  for (size_t i = 0; i < directories.size(); ++i) {
    FileSystem& file_system = file_systems[file_system_of(directories[i])];
    file_system.free_bytes = free_bytes(directories[i]);
    if (pattern) file_system.share += pattern->share(i);
  }
  uint64_t together = 0;
  double in_proportion = std::numeric_limits<double>::infinity();
  for (const auto& [device, file_system] : file_systems) {
    together += file_system.free_bytes;
    in_proportion =
        std::min(in_proportion, static_cast<double>(file_system.free_bytes) / file_system.share);
  }
  return pattern ? std::min(together, static_cast<uint64_t>(in_proportion)) : together;
}

}  // namespace strata::io
