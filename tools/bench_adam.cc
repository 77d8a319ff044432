// strata bench adam: the fused update of every optimizer against streaming the same bytes.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kernels/device/thread_team.h"
#include "kernels/ops/optimizer_ops.h"
#include "strata/error.h"
#include "strata/grain.h"
#include "tools/bench.h"
#include "tools/bench_stream.h"
#include "tools/command.h"

namespace strata::tools {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kDefaultNumel = int64_t{64} << 20;
constexpr int64_t kSmokeNumel = 16 * kGrainNumel;

struct BenchAdamOptions {
  std::optional<int64_t> numel;
  std::string optimizer = "adamw";
  std::string isa;
  std::string grad_dtype = "bf16";
  std::string param_dtype = "bf16";
  int threads = 0;
  double seconds = 5;
  std::optional<int64_t> repeat;
  bool json = false;
  bool smoke = false;
};

// The options' meaning. Throws ConfigError where they have none.
struct Setting {
  explicit Setting(const BenchAdamOptions& options);

  int64_t numel;
  std::vector<OptimizerKind> optimizers;
  std::vector<std::string_view> isas;
  DType grad_dtype;
  DType param_dtype;
  int threads;
  Repetition repetition;
};

DType float_dtype(const std::string& option, const std::string& value) {
  for (DType dtype : {DType::fp32, DType::bf16, DType::fp16}) {
    if (value == name(dtype)) return dtype;
  }
  throw ConfigError(fmt::format("{} is \"{}\": say \"fp32\", \"bf16\" or \"fp16\"", option, value));
}

// The one of `all` that has this name, or all of them for "all".
template <typename T, typename Names, typename NameOf>
std::vector<T> chosen(const std::string& option, const std::string& value, const Names& all,
                      const NameOf& name_of) {
  if (value == "all") return {all.begin(), all.end()};
  std::vector<std::string_view> names;
  for (const T& one : all) {
    if (value == name_of(one)) return {one};
    names.push_back(name_of(one));
  }
  throw ConfigError(fmt::format("{} is \"{}\": say \"{}\" or \"all\"", option, value,
                                fmt::join(names, "\", \"")));
}

Setting::Setting(const BenchAdamOptions& options)
    : numel(options.numel.value_or(options.smoke ? kSmokeNumel : kDefaultNumel)),
      optimizers(chosen<OptimizerKind>("--optimizer", options.optimizer, kOptimizers,
                                       [](OptimizerKind kind) { return name(kind); })),
      isas(options.isa.empty()
               ? std::vector<std::string_view>{ops::active_isa()}
               : chosen<std::string_view>("--isa", options.isa, ops::available_isas(),
                                          [](std::string_view isa) { return isa; })),
      grad_dtype(float_dtype("--grad-dtype", options.grad_dtype)),
      param_dtype(float_dtype("--param-dtype", options.param_dtype)),
      threads(options.threads > 0 ? options.threads
                                  : static_cast<int>(std::thread::hardware_concurrency())),
      repetition{options.seconds, options.repeat.value_or(options.smoke ? 2 : 0)} {
  if (numel % kGrainNumel != 0) {
    throw ConfigError(fmt::format("--numel is {}: say a multiple of {}", numel, kGrainNumel));
  }
}

// Training state that one optimizer's cases work on, with ordinary values.
class TrainingState {
 public:
  TrainingState(OptimizerKind kind, const Setting& setting)
      : setting_(setting),
        master_(setting.numel, sizeof(float)),
        grad_(setting.numel, size_bytes(setting.grad_dtype)),
        param_(setting.numel, size_bytes(setting.param_dtype)) {
    if (moments_of(kind).exp_avg) exp_avg_.emplace(setting.numel, sizeof(float));
    if (moments_of(kind).exp_avg_sq) exp_avg_sq_.emplace(setting.numel, sizeof(float));
    float* master = master_.as<float>();
    parallel_for(setting.numel, kGrainNumel, [master](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) master[i] = 0.001f * static_cast<float>(i % 997 - 498);
    });
    ops::cast(grad_.as<void>(), setting.grad_dtype, master, DType::fp32, setting.numel);
  }

  ops::OptimizerSpans optimizer_spans() const {
    return {.master = master_.as<float>(),
            .exp_avg = exp_avg_ ? exp_avg_->as<float>() : nullptr,
            .exp_avg_sq = exp_avg_sq_ ? exp_avg_sq_->as<float>() : nullptr,
            .grad = grad_.as<void>(),
            .param = param_.as<void>(),
            .numel = setting_.numel,
            .grad_dtype = setting_.grad_dtype,
            .param_dtype = setting_.param_dtype};
  }

  StreamSpans stream_spans() const {
    StreamSpans spans{.state = {master_.as<float>()},
                      .states = 1,
                      .grad = grad_.as<void>(),
                      .grad_bytes = size_bytes(setting_.grad_dtype),
                      .param = param_.as<void>(),
                      .param_bytes = size_bytes(setting_.param_dtype),
                      .numel = setting_.numel};
    if (exp_avg_) spans.state[spans.states++] = exp_avg_->as<float>();
    if (exp_avg_sq_) spans.state[spans.states++] = exp_avg_sq_->as<float>();
    return spans;
  }

  // Every moment becomes the smallest normal number, which a gradient of zero takes below it.
  void decay_moments() const {
    constexpr float kMin = std::numeric_limits<float>::min();
    parallel_for(setting_.numel, kGrainNumel, [&](int64_t begin, int64_t end) {
      for (const auto* moment : {&exp_avg_, &exp_avg_sq_}) {
        if (*moment) std::fill_n((*moment)->as<float>() + begin, end - begin, kMin);
      }
    });
  }

 private:
  const Setting& setting_;
  BenchMemory master_;
  BenchMemory grad_;
  BenchMemory param_;
  std::optional<BenchMemory> exp_avg_;
  std::optional<BenchMemory> exp_avg_sq_;
};

uint64_t bytes_held(OptimizerKind kind, const Setting& setting) {
  const OptimizerMoments moments = moments_of(kind);
  const size_t states = size_t{1} + (moments.exp_avg ? 1 : 0) + (moments.exp_avg_sq ? 1 : 0);
  return static_cast<uint64_t>(setting.numel) *
         (states * sizeof(float) + size_bytes(setting.grad_dtype) +
          size_bytes(setting.param_dtype));
}

// State is read and written, the gradient read, the parameter written.
uint64_t bytes_moved(const StreamSpans& spans) {
  return static_cast<uint64_t>(spans.numel) *
         (2 * spans.states * sizeof(float) + spans.grad_bytes + spans.param_bytes);
}

// Which of the loops streams this traffic fastest here.
StreamLoop fastest_loop(const StreamSpans& spans, const Repetition& repetition) {
  std::vector<Entrant> entrants;
  for (const StreamLoop& loop : stream_loops()) {
    entrants.push_back({{}, [&spans, &loop] { stream_pass(spans, loop); }});
  }
  const std::vector<Times> times = run_in_turns(entrants, repetition);
  const auto by_best = [](const Times& a, const Times& b) {
    return a.best_seconds() < b.best_seconds();
  };
  const auto fastest = std::min_element(times.begin(), times.end(), by_best);
  return stream_loops()[static_cast<size_t>(fastest - times.begin())];
}

Json measured(const Times& times, const StreamSpans& spans) {
  const double best = times.best_seconds();
  return {{"best_ms", best * 1e3},
          {"median_ms", times.median_seconds() * 1e3},
          {"ns_per_element", best * 1e9 / static_cast<double>(spans.numel)},
          {"gb_per_s", static_cast<double>(bytes_moved(spans)) / best * 1e-9}};
}

// The cases of one optimizer, each beside the ceiling.
class OptimizerBench {
 public:
  OptimizerBench(OptimizerKind kind, const Setting& setting)
      : kind_(kind),
        setting_(setting),
        state_(kind, setting),
        stream_(state_.stream_spans()),
        loop_(fastest_loop(stream_, {setting.repetition.seconds / 2, setting.repetition.rounds})) {
    for (std::string_view isa : setting.isas) {
      add_case(isa, Moments::ordinary);
      // Adagrad's sum only grows.
      if (moments_of(kind).exp_avg) add_case(isa, Moments::decayed);
    }
  }

  Json run() {
    const std::vector<Times> times = run_in_turns(entrants_, setting_.repetition);
    ops::force_isa({});
    Times all_ceilings;
    for (size_t i = 0; i < cases_.size(); ++i) {
      const Times& ceiling = times[2 * i];
      const Times& own = times[2 * i + 1];
      all_ceilings.add(ceiling);
      cases_[i].update(measured(own, stream_));
      cases_[i]["ratio"] = own.speed_against(ceiling);
      cases_[i]["ratio_of_best"] = ceiling.best_seconds() / own.best_seconds();
    }
    Json ceiling = {{"loop", to_string(loop_)}};
    ceiling.update(measured(all_ceilings, stream_));
    return {{"optimizer", name(kind_)},
            {"bytes_per_element", bytes_moved(stream_) / static_cast<uint64_t>(stream_.numel)},
            {"rounds", times[0].rounds()},
            {"ceiling", ceiling},
            {"cases", cases_}};
  }

 private:
  // Decayed: the step takes them below the smallest normal number, every time.
  enum class Moments { ordinary, decayed };

  // The ceiling and, right after it, the case.
  void add_case(std::string_view isa, Moments moments) {
    const bool decayed = moments == Moments::decayed;
    ops::OptimizerScalars scalars{.kind = kind_, .lr = 1e-6};
    scalars.grad_scale = decayed ? 0 : 0.5;
    entrants_.push_back({{}, [this] { stream_pass(stream_, loop_); }});
    entrants_.push_back(
        {[this, isa, decayed] {
           ops::force_isa(isa);
           if (decayed) state_.decay_moments();
         },
         [scalars, spans = state_.optimizer_spans()] { ops::optimizer_update(scalars, spans); }});
    cases_.push_back({{"isa", isa}, {"moments", decayed ? "decayed" : "ordinary"}});
  }

  const OptimizerKind kind_;
  const Setting& setting_;
  const TrainingState state_;
  const StreamSpans stream_;
  const StreamLoop loop_;
  std::vector<Entrant> entrants_;
  Json cases_ = Json::array();
};

void print_text(const Json& result) {
  const std::vector<Column> columns = {{"isa", "isa", -12},
                                       {"moments", "moments", -10},
                                       {"best_ms", "best ms", 10, "{:.3f}"},
                                       {"median_ms", "median ms", 11, "{:.3f}"},
                                       {"ns_per_element", "ns/element", 12, "{:.4f}"},
                                       {"gb_per_s", "GB/s", 9, "{:.2f}"},
                                       {"ratio", "of ceiling", 12, "{:.3f}"},
                                       {"ratio_of_best", "of its best", 13, "{:.3f}"}};
  for (const Json& optimizer : result.at("optimizers")) {
    Json ceiling = optimizer.at("ceiling");
    fmt::print("{}: {} bytes an element, {} rounds; ceiling: {}\n",
               optimizer.at("optimizer").get<std::string>(),
               optimizer.at("bytes_per_element").get<int>(), optimizer.at("rounds").get<int>(),
               ceiling.at("loop").get<std::string>());
    ceiling.update({{"isa", "ceiling"}, {"moments", ""}, {"ratio", 1}, {"ratio_of_best", 1}});
    Json rows = {ceiling};
    for (const Json& one : optimizer.at("cases")) rows.push_back(one);
    fmt::print("{}\n", table(columns, rows));
  }
}

void bench_adam(const BenchAdamOptions& options) {
  const Setting setting(options);
  for (OptimizerKind kind : setting.optimizers) require_memory(bytes_held(kind, setting));
  const TeamScope team(setting.threads);
  Json result = {{"bench", "adam"},
                 {"numel", setting.numel},
                 {"grad_dtype", name(setting.grad_dtype)},
                 {"param_dtype", name(setting.param_dtype)},
                 {"threads", setting.threads},
                 {"optimizers", Json::array()}};
  if (!options.json) {
    fmt::print("{} elements, {} gradients, {} parameters, {} threads\n\n", setting.numel,
               name(setting.grad_dtype), name(setting.param_dtype), setting.threads);
  }
  for (OptimizerKind kind : setting.optimizers) {
    result["optimizers"].push_back(OptimizerBench(kind, setting).run());
  }
  options.json ? fmt::print("{}\n", result.dump(2)) : print_text(result);
}

}  // namespace

void add_bench_adam(CLI::App& bench) {
  auto options = std::make_shared<BenchAdamOptions>();
  CLI::App* command =
      bench.add_subcommand("adam", "The fused optimizer update against streaming the same bytes");
  command->add_option("--numel", options->numel, "Elements, a multiple of 4096; 64 Mi if not given")
      ->check(CLI::PositiveNumber);
  command->add_option("--optimizer", options->optimizer,
                      "adam, adamw (the default), adagrad, lion, sgd, or all of them: all");
  command->add_option("--isa", options->isa,
                      "Instruction set, or all that this machine has: all; the best if not given");
  command->add_option("--grad-dtype", options->grad_dtype, "fp32, bf16 (the default) or fp16");
  command->add_option("--param-dtype", options->param_dtype, "fp32, bf16 (the default) or fp16");
  command->add_option("--threads", options->threads, "Threads; all cores if not given")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--seconds", options->seconds,
                   "Repeat an optimizer's cases this long; 5 if not given")
      ->check(CLI::PositiveNumber);
  command->add_option("--repeat", options->repeat, "Repeat this many times instead")
      ->check(CLI::PositiveNumber);
  command->add_flag("--json", options->json, "Print one JSON object");
  command->add_flag("--smoke", options->smoke,
                    "A size and number of repetitions that show that it runs, and no speed");
  command->footer(
      "The ceiling is the fastest of several loops that read and write the same bytes in place,\n"
      "with next to no arithmetic; each repetition of a case follows one of the ceiling. The "
      "column\n"
      "\"of ceiling\" is the median of these pairs' ratios, \"of its best\" the ratio of the best\n"
      "times. \"decayed\" moments drop below the smallest normal number in every step.\n"
      "Example: strata bench adam --optimizer all --isa all --json");
  command->callback([options] { bench_adam(*options); });
}

}  // namespace strata::tools
