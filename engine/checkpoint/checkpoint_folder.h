// A folder of checkpoints, as a run keeps them: step-00000100, step-00000200, ..., and `latest`, a
// symbolic link to the newest.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace strata::engine {

class CheckpointFolder {
 public:
  explicit CheckpointFolder(std::string path);

  // Whether there is a complete checkpoint at `path`: a manifest is its last file.
  static bool is_checkpoint(const std::string& path);
  // "FOLDER/step-00000100"
  std::string of_step(int64_t step) const;
  // Complete ones, oldest first.
  std::vector<std::string> all() const;
  std::string newest() const;  // empty: none

  // Points `latest` to the newest and deletes all but the newest `keep` (0: none), and what an
  // interrupted one left. Touches nothing that has another name than step-N. Throws IoError.
  void tidy(int keep) const;

 private:
  std::string path_;
};

}  // namespace strata::engine
