// Preallocated files for direct I/O.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "strata/log.h"

namespace strata::io {

class BlockFile;

// Bytes from 0 to bytes() that requests address: one file, or several that they are dealt to
// (StripedFile). Any thread may ask.
class FileSpace {
 public:
  // Bytes that lie one after the other in one file.
  struct Run {
    const BlockFile* file = nullptr;
    uint64_t offset = 0;
    uint64_t bytes = 0;
  };

  virtual ~FileSpace() = default;
  virtual uint64_t bytes() const = 0;
  // For messages.
  virtual const std::string& path() const = 0;
  // Of every request: its buffer, and its offset and length. Powers of two.
  virtual uint32_t memory_alignment() const = 0;
  virtual uint32_t offset_alignment() const = 0;
  virtual std::span<const BlockFile> files() const = 0;
  // What lies at `offset`, below bytes(), as far as one file goes.
  virtual Run locate(uint64_t offset) const = 0;
};

enum class DirectMode : uint8_t {
  automatic,  // O_DIRECT, or buffered with one warning a file where the file system refuses it
  required,   // O_DIRECT or an IoError
  off,        // buffered
};

struct BlockFileOptions {
  DirectMode direct = DirectMode::automatic;
  bool read_only = false;  // open() asks for no right to write
};

// One open file of fixed size. Immutable after construction, so any thread may read it; the bytes
// behind it are moved by IoEngine. Closing happens in the destructor and cannot lose data: what
// must be durable is flushed through the engine.
class BlockFile final : public FileSpace {
 public:
  // An anonymous file in `directory` (O_TMPFILE, or created and unlinked where that is refused):
  // gone with the process, however it ends. All its blocks are reserved, so that no later write
  // meets a full disk. Throws IoError naming the directory; ENOSPC says how much is needed and
  // how much is free.
  static BlockFile create_scratch(const std::string& directory, uint64_t bytes,
                                  const BlockFileOptions& options, LogSink& log);
  // A named file that survives the process, reserved alike; nothing may exist at `path`, not even
  // a dangling link. Its name and size are durable on return; on failure no file is left.
  static BlockFile create(const std::string& path, uint64_t bytes, const BlockFileOptions& options,
                          LogSink& log);
  // An existing regular file, with its size.
  static BlockFile open(const std::string& path, const BlockFileOptions& options, LogSink& log);

  BlockFile(BlockFile&& other) noexcept;
  BlockFile& operator=(BlockFile&& other) noexcept;
  ~BlockFile() override;

  int fd() const { return fd_; }
  const std::string& path() const override { return path_; }
  uint64_t bytes() const override { return bytes_; }
  bool direct() const { return direct_; }
  // From statx(STATX_DIOALIGN); 4096 where the kernel does not say; 1 when buffered.
  uint32_t memory_alignment() const override { return memory_alignment_; }
  uint32_t offset_alignment() const override { return offset_alignment_; }
  std::span<const BlockFile> files() const override { return {this, 1}; }
  Run locate(uint64_t offset) const override { return {this, offset, bytes_ - offset}; }

 private:
  BlockFile(int fd, std::string path);

  void reserve(uint64_t bytes, const std::string& directory);
  void choose_direct(DirectMode mode, LogSink& log);
  std::string try_direct();

  int fd_ = -1;
  std::string path_;
  uint64_t bytes_ = 0;
  bool direct_ = false;
  uint32_t memory_alignment_ = 1;
  uint32_t offset_alignment_ = 1;
};

// Bytes free for this process on the file system of `directory`. Throws IoError.
uint64_t free_bytes(const std::string& directory);

}  // namespace strata::io
