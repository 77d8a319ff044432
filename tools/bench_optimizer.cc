#include "tools/bench_optimizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <thread>
#include <vector>

#include "kernels/device/thread_team.h"
#include "strata/error.h"
#include "strata/grain.h"

namespace strata::tools {
namespace {

constexpr int64_t kDefaultNumel = int64_t{64} << 20;
constexpr int64_t kSmokeNumel = 16 * kGrainNumel;

}  // namespace

void add_options(CLI::App& command, OptimizerBenchOptions& options) {
  command.add_option("--numel", options.numel, "Elements, a multiple of 4096; 64 Mi if not given")
      ->check(CLI::PositiveNumber);
  command.add_option("--threads", options.threads, "Threads; all cores if not given")
      ->check(CLI::PositiveNumber);
  command.add_option("--seconds", options.seconds, "Repeat this long; 5 if not given")
      ->check(CLI::PositiveNumber);
  command.add_option("--repeat", options.repeat, "Repeat this many times instead")
      ->check(CLI::PositiveNumber);
  command.add_flag("--json", options.json, "Print one JSON object");
  command.add_flag("--smoke", options.smoke,
                   "A size and number of repetitions that show that it runs, and no speed");
}

OptimizerBenchSetting::OptimizerBenchSetting(const OptimizerBenchOptions& options)
    : numel(options.numel.value_or(options.smoke ? kSmokeNumel : kDefaultNumel)),
      threads(options.threads > 0 ? options.threads
                                  : static_cast<int>(std::thread::hardware_concurrency())),
      repetition{options.seconds, options.repeat.value_or(options.smoke ? 2 : 0)} {
  if (numel % kGrainNumel != 0) {
    throw ConfigError(fmt::format("--numel is {}: say a multiple of {}", numel, kGrainNumel));
  }
}

DType float_dtype(const std::string& option, const std::string& value) {
  for (DType dtype : {DType::fp32, DType::bf16, DType::fp16}) {
    if (value == name(dtype)) return dtype;
  }
  throw ConfigError(fmt::format("{} is \"{}\": say \"fp32\", \"bf16\" or \"fp16\"", option, value));
}

TrainingState::TrainingState(OptimizerKind kind, int64_t numel, const StateDTypes& dtypes)
    : numel_(numel),
      dtypes_(dtypes),
      master_(numel, sizeof(float)),
      grad_(numel, size_bytes(dtypes.grad)),
      param_(numel, size_bytes(dtypes.param)) {
  if (moments_of(kind).exp_avg) exp_avg_.emplace(numel, sizeof(float));
  if (moments_of(kind).exp_avg_sq) exp_avg_sq_.emplace(numel, sizeof(float));
  float* master = master_.as<float>();
  parallel_for(numel, kGrainNumel, [master](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) master[i] = 0.001f * static_cast<float>(i % 997 - 498);
  });
  ops::cast(grad_.as<void>(), dtypes.grad, master, DType::fp32, numel);
}

uint64_t TrainingState::bytes(OptimizerKind kind, int64_t numel, const StateDTypes& dtypes) {
  const OptimizerMoments moments = moments_of(kind);
  const size_t states = size_t{1} + (moments.exp_avg ? 1 : 0) + (moments.exp_avg_sq ? 1 : 0);
  return static_cast<uint64_t>(numel) *
         (states * sizeof(float) + size_bytes(dtypes.grad) + size_bytes(dtypes.param));
}

ops::OptimizerSpans TrainingState::optimizer_spans() const {
  return {.master = master_.as<float>(),
          .exp_avg = exp_avg_ ? exp_avg_->as<float>() : nullptr,
          .exp_avg_sq = exp_avg_sq_ ? exp_avg_sq_->as<float>() : nullptr,
          .grad = grad_.as<void>(),
          .param = param_.as<void>(),
          .numel = numel_,
          .grad_dtype = dtypes_.grad,
          .param_dtype = dtypes_.param};
}

StreamSpans TrainingState::stream_spans() const {
  StreamSpans spans{.state = {master_.as<float>()},
                    .states = 1,
                    .grad = grad_.as<void>(),
                    .grad_bytes = size_bytes(dtypes_.grad),
                    .param = param_.as<void>(),
                    .param_bytes = size_bytes(dtypes_.param),
                    .numel = numel_};
  if (exp_avg_) spans.state[spans.states++] = exp_avg_->as<float>();
  if (exp_avg_sq_) spans.state[spans.states++] = exp_avg_sq_->as<float>();
  return spans;
}

void TrainingState::decay_moments() const {
  constexpr float kMin = std::numeric_limits<float>::min();
  parallel_for(numel_, kGrainNumel, [&](int64_t begin, int64_t end) {
    for (const auto* moment : {&exp_avg_, &exp_avg_sq_}) {
      if (*moment) std::fill_n((*moment)->as<float>() + begin, end - begin, kMin);
    }
  });
}

size_t stream_bytes(const StreamSpans& spans) {
  return 2 * spans.states * sizeof(float) + spans.grad_bytes + spans.param_bytes;
}

StreamLoop fastest_loop(const StreamSpans& spans, const Repetition& repetition) {
  std::vector<Entrant> entrants;
  for (const StreamLoop& loop : stream_loops()) {
    entrants.push_back({{}, [&spans, &loop] { stream_pass(spans, loop); }});
  }
  return stream_loops()[fastest(run_in_turns(entrants, repetition))];
}

nlohmann::ordered_json measured(const Times& times, size_t bytes, int64_t numel) {
  const double best = times.best_seconds();
  const auto elements = static_cast<double>(numel);
  return {{"best_ms", best * 1e3},
          {"median_ms", times.median_seconds() * 1e3},
          {"ns_per_element", best * 1e9 / elements},
          {"gb_per_s", static_cast<double>(bytes) * elements / best * 1e-9}};
}

}  // namespace strata::tools
