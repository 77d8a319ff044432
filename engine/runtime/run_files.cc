#include "engine/runtime/run_files.h"

#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <filesystem>
#include <span>
#include <system_error>
#include <vector>

#include "strata/error.h"

namespace strata::engine {
namespace {

namespace fs = std::filesystem;

// All ranks are here.
void meet(const World& world, Communicator& comm) {
  const std::array<std::byte, 1> mine = {};
  std::vector<std::byte> all(static_cast<size_t>(world.size));
  comm.exchange(mine, all);
}

bool same_place(const std::string& one, const std::string& other) {
  std::error_code ignored;
  return fs::equivalent(one, other, ignored);
}

}  // namespace

RunFiles::RunFiles(const Wanted& wanted, const Config& config, const World& world,
                   Communicator& comm, LogSink& log)
    : world_(world), config_(config), comm_(comm), path_(wanted.run_directory) {
  if (world.local_rank == 0) StateDirectory::clean(config.nvme_paths, log);
  bool goes_on = false;
  if (!wanted.resume.empty()) {
    goes_on =
        RunDirectory::exists(wanted.resume) && (path_.empty() || same_place(path_, wanted.resume));
    if (goes_on) path_ = wanted.resume;
    checkpoint_ = start_of(wanted.resume, /*required=*/!goes_on);
  }
  if (path_.empty()) return;
  if (world.rank == 0) {
    const bool has_origin = wanted.has_initial_values || !checkpoint_.empty();
    run_ = goes_on ? RunDirectory::open(path_) : RunDirectory::create(path_, has_origin);
  }
  meet(world, comm);
  record_ = RunDirectory::read(path_);
  path_ = fs::canonical(path_).string();
  must_go_on_ = goes_on && record_.has_origin;
}

void RunFiles::require_origin() const {
  if (!must_go_on_) return;
  throw ConfigError(fmt::format(
      "the run in '{}' ended before any state of it was kept, and did not begin with initial "
      "values that could be made again: remove the directory and start it as it was started",
      path_));
}

std::string RunFiles::start_of(const std::string& path, bool required) {
  const std::vector<std::string> found = checkpoints_of(path);
  if (found.empty() && required) {
    throw ConfigError(
        fmt::format("the run in '{}' has no checkpoint to start another run from", path));
  }
  return found.empty() ? "" : found.back();
}

StateDirectory::Owner RunFiles::owner() const { return {path_, record_.id, world_.rank}; }

uint64_t RunFiles::state_bytes() const {
  return record_.state_paths.empty() ? 0 : StateDirectory::bytes_of(owner(), record_.state_paths);
}

template <typename Change>
void RunFiles::note(const Change& change) {
  change(record_);
  if (run_) run_->write(record_);
}

void RunFiles::choose(const Plan& plan) {
  const bool had_state = !record_.state_paths.empty();
  if (!plan.recovers_steps) {
    if (!had_state) return;
    throw ConfigError(fmt::format(
        "the run in '{}' keeps each step's state in '{}', and goes on from there with {} alone: "
        "resume with the configuration it was begun with",
        path_, fmt::join(record_.state_paths, "' and '"),
        plan.summary.step_recovery_takes.empty() ? "strata.recovery \"auto\" or \"step\""
                                                 : plan.summary.step_recovery_takes));
  }
  if (had_state && record_.world_size != world_.size) {
    throw ConfigError(fmt::format(
        "the run in '{}' keeps the state of {} ranks, and there are {}: start as many, or resume "
        "from a checkpoint into another directory",
        path_, record_.world_size, world_.size));
  }
  if (had_state && record_.state_paths != config_.nvme_paths) {
    throw ConfigError(
        fmt::format("the run in '{}' keeps its state in '{}': set "
                    "zero_optimization.offload_optimizer.nvme_path to that",
                    path_, fmt::join(record_.state_paths, "' and '")));
  }
  state_.emplace(owner(), config_.nvme_paths);
  meet(world_, comm_);
  if (had_state) {
    if (!state_->has_files()) require_no_state();
    return;
  }
  // Left by one that was stopped while it deleted them.
  state_->discard();
  note([&](RunRecord& record) {
    record.state_paths = config_.nvme_paths;
    record.world_size = world_.size;
  });
}

void RunFiles::note_state() {
  if (!record_.has_state) note([](RunRecord& record) { record.has_state = true; });
}

void RunFiles::require_no_state() const {
  if (!record_.has_state) return;
  throw CorruptionError(fmt::format(
      "the run in '{}' has kept its state in '{}', and rank {} finds none that is whole there: "
      "bring it back, or resume from a checkpoint into another directory",
      path_, fmt::join(record_.state_paths, "' and '"), world_.rank));
}

void RunFiles::remove_state() {
  if (!state_) return;
  meet(world_, comm_);
  note([](RunRecord& record) {
    record.state_paths.clear();
    record.has_state = false;
  });
  meet(world_, comm_);
  state_->remove();
  state_.reset();
}

}  // namespace strata::engine
