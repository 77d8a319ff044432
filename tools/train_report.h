// What `strata train` says while it runs and when it is done.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "strata/engine.h"
#include "strata/text_corpus.h"

namespace strata::tools {

// A line of JSON a step.
class MetricsFile {
 public:
  // Throws ConfigError when the file cannot be written; empty path: writes nothing.
  explicit MetricsFile(const std::string& path);

  void write(const StepResult& result);
  void write_validation(int64_t step, double loss);

 private:
  void write_line(const std::string& line);

  const std::string path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

// A progress line: rewritten in place, or a line every few seconds. A skipped step has its own.
class Progress {
 public:
  struct Options {
    int64_t steps = 0;
    double max_seconds = 0;
    bool in_place = false;
  };
  explicit Progress(const Options& options);

  void show(const StepResult& result);
  // Ends the line in place, so that what follows starts on its own.
  void finish();

 private:
  void show_skipped(const StepResult& result);

  const Options options_;
  const int64_t begin_ns_;
  int64_t last_shown_ns_ = 0;
  int64_t tokens_ = 0;
  bool open_ = false;
};

// Sums over a run's steps, for the closing table.
class RunTotals {
 public:
  void add(const StepResult& result);
  // Mean time of a step's forward passes, over its micro-batches.
  double forward_seconds() const {
    return steps_ == 0 ? 0 : phases_.forward / static_cast<double>(steps_);
  }
  // Tiers with plan and peak; links with planned and measured bytes; where the time went.
  std::string table(const PlanSummary& plan) const;

 private:
  int64_t steps_ = 0;
  int64_t skipped_ = 0;
  int64_t tokens_ = 0;
  int64_t speculated_ = 0;
  int64_t redone_ = 0;
  double seconds_ = 0;
  StepResult::Phases phases_;
  StepResult::Exposed exposed_;
  LinkBytes moved_ = {};
  std::array<uint64_t, kTierCount> peak_ = {};
};

}  // namespace strata::tools
