// What of a run outlives its process, as one rank sees it: the run's directory, the checkpoint or
// run it goes on from, and this rank's place for state files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/checkpoint/run_directory.h"
#include "engine/checkpoint/state_directory.h"
#include "engine/comm/communicator.h"
#include "engine/plan/planner.h"
#include "strata/config.h"
#include "strata/log.h"
#include "strata/world.h"

namespace strata::engine {

class RunFiles {
 public:
  // Collective. Opens or makes the run's directory on rank 0, and cleans up after runs whose
  // directory is gone. Throws ConfigError for directories that do not suit, naming who has them
  // where that is it.
  struct Wanted {
    std::string run_directory, resume;  // as in Engine::Options
    bool has_initial_values = false;    // likewise
  };
  RunFiles(const Wanted& wanted, const Config& config, const World& world, Communicator& comm,
           LogSink& log);

  // Whether anything outlives the process.
  bool has_directory() const { return !path_.empty(); }
  const std::string& path() const { return path_; }  // of the run's directory, absolute
  // A checkpoint to begin with; empty: none.
  const std::string& checkpoint() const { return checkpoint_; }
  // Throws ConfigError where the run goes on and cannot begin anew.
  void require_origin() const;
  // Bytes of this rank's state files, there already.
  uint64_t state_bytes() const;

  // Takes this rank's place for state files, if the plan recovers steps. Collective. Throws
  // ConfigError where a run that does would go on without its state, or with another number of
  // ranks, and while a live process has the place; CorruptionError where the state is gone.
  void choose(const Plan& plan);
  // Null where it does not.
  StateDirectory* state() { return state_ ? &*state_ : nullptr; }
  // All ranks' state is on the disk: from here on the run does not begin anew. Any rank, after all.
  void note_state();
  // Throws CorruptionError where it was, and nothing is found of it.
  void require_no_state() const;
  // Deletes the state files: a checkpoint has it all. Collective.
  void remove_state();

 private:
  // The checkpoint that `path` is, or the newest of the run that it is; empty where that has none
  // and none is required.
  static std::string start_of(const std::string& path, bool required);
  StateDirectory::Owner owner() const;
  // Changes run.json.
  template <typename Change>
  void note(const Change& change);

  const World& world_;
  const Config& config_;
  Communicator& comm_;
  std::string path_;
  std::string checkpoint_;
  bool must_go_on_ = false;
  std::optional<RunDirectory> run_;  // rank 0's
  RunRecord record_;
  std::optional<StateDirectory> state_;
};

}  // namespace strata::engine
