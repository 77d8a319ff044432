// A line on standard error that says how far a long piece of work is.
#pragma once

#include <cstdint>
#include <string>

namespace strata::tools {

// One thread's. Rewrites its line on a terminal, and elsewhere writes one every few seconds; says
// nothing of work that takes less.
class WorkProgress {
 public:
  // "`done` 12 of 34 MiB", of so many bytes.
  WorkProgress(std::string done, uint64_t bytes);
  // Clears the line in place.
  ~WorkProgress();
  WorkProgress(const WorkProgress&) = delete;
  WorkProgress& operator=(const WorkProgress&) = delete;

  void add(uint64_t bytes);
  uint64_t done_bytes() const { return done_bytes_; }

 private:
  const std::string done_;
  const uint64_t bytes_;
  const bool in_place_;
  uint64_t done_bytes_ = 0;
  int64_t last_shown_ns_;
  bool open_ = false;
};

}  // namespace strata::tools
