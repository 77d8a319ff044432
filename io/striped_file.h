// One address space over files in several directories, so that several disks work at once.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/block_file.h"
#include "io/stripe_pattern.h"
#include "strata/log.h"

namespace strata::io {

// Where a striped file lies. One directory is a plain file, whatever its weight.
struct Stripes {
  std::vector<std::string> directories;
  std::vector<uint32_t> weights;   // one a directory
  uint64_t block_bytes = 1 << 20;  // a multiple of every file's alignment
};

// Immutable after construction, as BlockFile is.
class StripedFile final : public FileSpace {
 public:
  // NOLINTNEXTLINE(google-explicit-constructor): a file is striped over one path.
  StripedFile(BlockFile file);
  // Anonymous files, reserved as BlockFile::create_scratch does, whose errors are this one's.
  // Throws ConfigError for weights or a block size that do not fit the directories.
  static StripedFile create_scratch(const Stripes& stripes, uint64_t bytes,
                                    const BlockFileOptions& options, LogSink& log);
  // Files of this name that survive the process, as BlockFile::create; on failure none is left.
  static StripedFile create(const Stripes& stripes, const std::string& name, uint64_t bytes,
                            const BlockFileOptions& options, LogSink& log);
  // Those that create() made with the same arguments. Throws CorruptionError for files of another
  // size.
  static StripedFile open(const Stripes& stripes, const std::string& name, uint64_t bytes,
                          const BlockFileOptions& options, LogSink& log);

  uint64_t bytes() const override { return bytes_; }
  const std::string& path() const override { return path_; }
  uint32_t memory_alignment() const override { return memory_alignment_; }
  uint32_t offset_alignment() const override { return offset_alignment_; }
  std::span<const BlockFile> files() const override { return files_; }
  Run locate(uint64_t offset) const override;

  const StripePattern& pattern() const { return pattern_; }
  // Whether every file is.
  bool direct() const;

 private:
  StripedFile(std::vector<BlockFile> files, StripePattern pattern, uint64_t bytes);
  // `make(directory, bytes)` is the file there.
  template <typename Make>
  static StripedFile make(const Stripes& stripes, uint64_t bytes, const Make& make);

  std::vector<BlockFile> files_;
  StripePattern pattern_;
  uint64_t bytes_ = 0;
  std::string path_;
  uint32_t memory_alignment_ = 1;
  uint32_t offset_alignment_ = 1;
};

// Bytes that a striped file in these directories can have, where several may share a file system.
// Without weights: as if they were chosen to fill every disk. Throws IoError, and ConfigError for
// weights that do not fit the directories.
uint64_t striped_free_bytes(std::span<const std::string> directories,
                            std::span<const uint32_t> weights);

}  // namespace strata::io
