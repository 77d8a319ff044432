// One rank's state files, which outlive its process: in each directory of nvme_path a folder
// `strata-ID`, ID being the run's, with
//
//   rank-R.state     its part of the slots (offload/slot_store.h)
//   rank-R.journal   which of them count; in the first directory, as what follows
//   rank-R.json      whose they are, what they were laid out for, and whether they are complete
//   rank-R.lock      held by the rank's process
//
// Two processes never share them, a live one's are named, and those of runs that are gone are
// cleaned away by whoever starts next on this machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/block_file.h"
#include "io/durable_file.h"
#include "io/striped_file.h"
#include "strata/log.h"

namespace strata::engine {

class StateDirectory {
 public:
  struct Owner {
    std::string run_directory;  // absolute
    std::string run_id;
    int rank = 0;
  };
  struct Files {
    io::StripedFile state;
    io::BlockFile journal;
  };

  // Takes the rank's place in these directories, and makes the folders where there are none.
  // Throws ConfigError while a live process holds it.
  StateDirectory(const Owner& owner, std::vector<std::string> paths);

  // Bytes that a rank's files take in these directories; 0 where there are none.
  static uint64_t bytes_of(const Owner& owner, const std::vector<std::string>& paths);
  // Whether its files are complete.
  bool has_files() const;
  // Where they lie, as they were made. Throws CorruptionError where that cannot be read.
  io::Stripes stripes() const;
  // `layout` is a hash of all that the bytes' meaning depends on. What an earlier attempt left
  // unfinished goes first. `stripes` are of the paths.
  Files create(const io::Stripes& stripes, uint64_t state_bytes, uint64_t journal_bytes,
               uint64_t layout, const io::BlockFileOptions& options, LogSink& log);
  // Throws ConfigError for files of another layout, CorruptionError for other sizes.
  Files open(uint64_t state_bytes, uint64_t journal_bytes, uint64_t layout,
             const io::BlockFileOptions& options, LogSink& log);
  // Deletes files that are there, of a run that does not count on them.
  void discard();
  // Deletes them, and the folder with the last rank's. They must be closed or not used any more.
  void remove();

  // Deletes what runs of this machine left whose run directory is gone, and says so.
  static void clean(const std::vector<std::string>& paths, LogSink& log);

 private:
  std::string file(size_t path, const char* suffix) const;
  std::vector<std::string> folders() const;

  Owner owner_;
  std::vector<std::string> paths_;
  io::FileLock lock_;
};

}  // namespace strata::engine
