// Preallocated files for direct I/O.
#pragma once

#include <cstdint>
#include <string>

#include "strata/log.h"

namespace strata::io {

enum class DirectMode : uint8_t {
  automatic,  // O_DIRECT, or buffered with one warning a file where the file system refuses it
  required,   // O_DIRECT or an IoError
  off,        // buffered
};

struct BlockFileOptions {
  DirectMode direct = DirectMode::automatic;
};

// One open file of fixed size. Immutable after construction, so any thread may read it; the bytes
// behind it are moved by IoEngine. Closing happens in the destructor and cannot lose data: what
// must be durable is flushed through the engine.
class BlockFile {
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
  ~BlockFile();

  int fd() const { return fd_; }
  const std::string& path() const { return path_; }
  uint64_t bytes() const { return bytes_; }
  bool direct() const { return direct_; }
  // From statx(STATX_DIOALIGN); 4096 where the kernel does not say; 1 when buffered. Powers of two.
  uint32_t memory_alignment() const { return memory_alignment_; }
  uint32_t offset_alignment() const { return offset_alignment_; }

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
