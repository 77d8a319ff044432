// A run's directory: what outlives its processes, or says where that lies.
//
//   run.json       who the run is, and where its state files are
//   lock           held by the process that trains (rank 0)
//   checkpoints/   as CheckpointFolder makes them
//
// With `recovery: step` each rank's state files lie in a folder of every directory of nvme_path,
// under the run's id (state_directory.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/checkpoint/checkpoint_folder.h"
#include "io/durable_file.h"

namespace strata::engine {

// What run.json says.
struct RunRecord {
  std::string id;  // 16 hexadecimal digits
  // Of the state files, where there are some; none: checkpoints are what there is.
  std::vector<std::string> state_paths = {};
  int world_size = 1;
  // It began with a checkpoint, or with values from elsewhere: nobody can make those again.
  bool has_origin = false;
  // All ranks had their first state on the disk: a start that does not find it has lost it.
  bool has_state = false;
};

// Rank 0's, who alone holds the lock and writes.
class RunDirectory {
 public:
  // Whether there is a run in this directory.
  static bool exists(const std::string& path);
  // Reads run.json. Throws ConfigError where there is none, CorruptionError where it makes no
  // sense.
  static RunRecord read(const std::string& path);

  // Makes the directory, with parents, and a new run in it. Throws ConfigError where it has one
  // already, IoError where it cannot be made.
  static RunDirectory create(const std::string& path, bool has_origin);
  // Goes on with the run in it. Throws ConfigError also where a live process trains it.
  static RunDirectory open(const std::string& path);

  const std::string& path() const { return path_; }
  const RunRecord& record() const { return record_; }
  // Durably.
  void write(const RunRecord& record);

 private:
  RunDirectory(std::string path, io::FileLock lock);

  std::string path_;  // absolute
  io::FileLock lock_;
  RunRecord record_;
};

// Where the run in a directory keeps its checkpoints.
CheckpointFolder checkpoint_folder(const std::string& run);

// The checkpoint that `path` is, or those of the run that it is, oldest first. Throws ConfigError
// for any other path.
std::vector<std::string> checkpoints_of(const std::string& path);

// Throws ConfigError when the lock at `path` is held, naming who holds it; `what` it belongs to.
io::FileLock lock_or_refuse(const std::string& path, const std::string& what);

}  // namespace strata::engine
