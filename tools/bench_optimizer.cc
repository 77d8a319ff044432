#include "tools/bench_optimizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
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
constexpr std::array kMasterCodecs = {Codec::fp32, Codec::split16};
constexpr std::array kMomentCodecs = {Codec::fp32, Codec::bf16, Codec::int8};

// A codec's store as so many elements of so many bytes.
size_t element_bytes(Codec codec) {
  return static_cast<size_t>(stored_bytes(codec, kGrainNumel) / kGrainNumel);
}
int64_t stored_numel(Codec codec, int64_t numel) {
  return stored_bytes(codec, numel) / static_cast<int64_t>(element_bytes(codec));
}

}  // namespace

void add_optimizer_options(CLI::App& command, OptimizerBenchOptions& options) {
  command.add_option("--numel", options.numel, "Elements, a multiple of 4096; 64 Mi if not given")
      ->check(CLI::PositiveNumber);
  command.add_option("--threads", options.threads, "Threads; all cores if not given")
      ->check(CLI::PositiveNumber);
  command.add_option("--seconds", options.seconds, "Repeat this long; 5 if not given")
      ->check(CLI::PositiveNumber);
  command.add_option("--repeat", options.repeat, "Repeat this many times instead")
      ->check(CLI::PositiveNumber);
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

void add_codec_options(CLI::App& command, CodecOptions& options) {
  command.add_option("--master-codec", options.master_codec,
                     "How masters are kept: fp32 (the default), split16, or both: all");
  command.add_option("--moment-codec", options.moment_codec,
                     "How moments are kept: fp32 (the default), bf16, int8, or all of them: all");
}

std::vector<StateForm> codec_forms(const CodecOptions& options, DType grad, DType param) {
  std::vector<StateForm> forms;
  for (Codec master : chosen("--master-codec", options.master_codec, kMasterCodecs)) {
    if (master == Codec::split16 && param != DType::bf16) {
      throw ConfigError(
          fmt::format("--master-codec split16 keeps what bf16 parameters leave, and --param-dtype "
                      "is {}: say bf16, or --master-codec fp32",
                      name(param)));
    }
    for (Codec moments : chosen("--moment-codec", options.moment_codec, kMomentCodecs)) {
      forms.push_back({grad, param, master, moments});
    }
  }
  return forms;
}

TrainingState::TrainingState(OptimizerKind kind, int64_t numel, const StateForm& form)
    : numel_(numel),
      form_(form),
      master_(stored_numel(form.master, numel), element_bytes(form.master)),
      grad_(numel, size_bytes(form.grad)),
      param_(numel, size_bytes(form.param)) {
  const int64_t stored = stored_numel(form.moments, numel);
  if (moments_of(kind).exp_avg) exp_avg_.emplace(stored, element_bytes(form.moments));
  if (moments_of(kind).exp_avg_sq) exp_avg_sq_.emplace(stored, element_bytes(form.moments));
  const BenchMemory values(numel, sizeof(float));
  parallel_for(numel, kGrainNumel, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      values.as<float>()[i] = 0.001f * static_cast<float>(i % 997 - 498);
    }
  });
  ops::encode_master(form.master, values.as<float>(), numel, master_.as<std::byte>());
  ops::cast(param_.as<void>(), form.param, values.as<float>(), DType::fp32, numel);
  ops::cast(grad_.as<void>(), form.grad, values.as<float>(), DType::fp32, numel);
}

uint64_t TrainingState::bytes(OptimizerKind kind, int64_t numel, const StateForm& form) {
  const OptimizerMoments moments = moments_of(kind);
  const int64_t kept = (moments.exp_avg ? 1 : 0) + (moments.exp_avg_sq ? 1 : 0);
  const auto elements = static_cast<uint64_t>(numel);
  return static_cast<uint64_t>(stored_bytes(form.master, numel) +
                               kept * stored_bytes(form.moments, numel)) +
         elements * (size_bytes(form.grad) + size_bytes(form.param)) +
         elements * sizeof(float);  // the values that fill it
}

ops::EncodedSpans TrainingState::encoded_spans() const {
  const auto moment = [this](const std::optional<BenchMemory>& memory) {
    return memory ? ops::StateSpan{memory->as<std::byte>(), form_.moments} : ops::StateSpan{};
  };
  return {.master = {master_.as<std::byte>(), form_.master},
          .exp_avg = moment(exp_avg_),
          .exp_avg_sq = moment(exp_avg_sq_),
          .grad = grad_.as<void>(),
          .param = param_.as<void>(),
          .grad_dtype = form_.grad,
          .param_dtype = form_.param,
          .begin = 0,
          .end = numel_};
}

ops::OptimizerSpans TrainingState::optimizer_spans() const {
  return {.master = master_.as<float>(),
          .exp_avg = exp_avg_ ? exp_avg_->as<float>() : nullptr,
          .exp_avg_sq = exp_avg_sq_ ? exp_avg_sq_->as<float>() : nullptr,
          .grad = grad_.as<void>(),
          .param = param_.as<void>(),
          .numel = numel_,
          .grad_dtype = form_.grad,
          .param_dtype = form_.param};
}

// Of int8, the codes: its scales are one part in 64.
StreamSpans TrainingState::stream_spans() const {
  StreamSpans spans{.numel = numel_};
  spans.add(master_.as<void>(), element_bytes(form_.master), StreamAccess::in_place);
  for (const auto* moment : {&exp_avg_, &exp_avg_sq_}) {
    if (*moment) {
      spans.add((*moment)->as<void>(), element_bytes(form_.moments), StreamAccess::in_place);
    }
  }
  spans.add(grad_.as<void>(), size_bytes(form_.grad), StreamAccess::read);
  const bool is_split = form_.master == Codec::split16;
  spans.add(param_.as<void>(), size_bytes(form_.param),
            is_split ? StreamAccess::in_place : StreamAccess::write);
  return spans;
}

void TrainingState::decay_moments() const {
  if (form_.moments != Codec::fp32) return;
  constexpr float kMin = std::numeric_limits<float>::min();
  parallel_for(numel_, kGrainNumel, [&](int64_t begin, int64_t end) {
    for (const auto* moment : {&exp_avg_, &exp_avg_sq_}) {
      if (*moment) std::fill_n((*moment)->as<float>() + begin, end - begin, kMin);
    }
  });
}

size_t stream_bytes(const StreamSpans& spans) {
  size_t bytes = 0;
  for (const StreamSpan& span : spans.all()) {
    bytes += span.element_bytes * (span.access == StreamAccess::in_place ? 2 : 1);
  }
  return bytes;
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
