// strata bench step: the CPU part of an offloaded optimizer step, fused against a chain of passes.
#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device/thread_team.h"
#include "strata/error.h"
#include "tools/bench_optimizer.h"
#include "tools/bench_stream.h"
#include "tools/command.h"
#include "tools/offloaded_step.h"

namespace strata::tools {
namespace {

using Json = nlohmann::ordered_json;

// What the fused step has to reach: this part of what the bytes spared allow, and this at least.
constexpr double kRequiredOfBytes = 0.9;
constexpr double kRequiredSpeedup = 1.7;

struct BenchStepOptions : OptimizerBenchOptions {
  std::string dtype = "bf16";
};

struct Setting : OptimizerBenchSetting {
  explicit Setting(const BenchStepOptions& options)
      : OptimizerBenchSetting(options), dtype(float_dtype("--dtype", options.dtype)) {
    if (size_bytes(dtype) != 2) {
      throw ConfigError(
          "--dtype is \"fp32\": the chain converts from and to 16 bits, say \"bf16\" "
          "or \"fp16\"");
    }
  }

  DType dtype;
};

// The passes of one way to make the step, and where their times are in a round.
struct Side {
  std::vector<StepPass> passes;
  size_t first = 0;

  size_t bytes() const {
    size_t sum = 0;
    for (const StepPass& pass : passes) sum += pass.bytes_per_element;
    return sum;
  }
  // Of the whole step, round for round.
  Times total(const std::vector<Times>& times) const {
    Times sum = times[first];
    for (size_t i = 1; i < passes.size(); ++i) sum = sum + times[first + i];
    return sum;
  }
};

class StepBench {
 public:
  explicit StepBench(const Setting& setting)
      : setting_(setting),
        step_(setting.numel, setting.dtype),
        stream_(step_.state().stream_spans()),
        trial_{setting.repetition.seconds / 4, setting.repetition.rounds},
        loop_(fastest_loop(stream_, trial_)),
        stores_{faster(&ChainStores::widen), faster(&ChainStores::narrow)} {
    entrants_.push_back({{}, [this] { stream_pass(stream_, loop_); }});
    fused_ = add(step_.fused());
    chain_ = add(step_.chain(stores_));
  }

  Json run() {
    const std::vector<Times> times = run_in_turns(entrants_, setting_.repetition);
    const Times fused = fused_.total(times);
    const Times chain = chain_.total(times);
    const Times& ceiling = times.front();
    const double bytes_ratio =
        static_cast<double>(chain_.bytes()) / static_cast<double>(fused_.bytes());
    // The ceiling moves fewer bytes: what is compared is bytes a second.
    const double ceiling_bytes_ratio =
        static_cast<double>(fused_.bytes()) / static_cast<double>(stream_bytes(stream_));
    return {{"rounds", fused.rounds()},
            {"ceiling", described(to_string(loop_), ceiling, stream_bytes(stream_))},
            {"fused", described(fused_, times)},
            {"chain", described(chain_, times)},
            {"speedup", fused.speed_against(chain)},
            {"speedup_of_best", chain.best_seconds() / fused.best_seconds()},
            {"bytes_ratio", bytes_ratio},
            {"required_speedup", {kRequiredOfBytes * bytes_ratio, kRequiredSpeedup}},
            {"of_ceiling", fused.speed_against(ceiling) * ceiling_bytes_ratio}};
  }

 private:
  Side add(std::vector<StepPass> passes) {
    Side side{std::move(passes), entrants_.size()};
    for (const StepPass& pass : side.passes) entrants_.push_back({{}, pass.run});
    return side;
  }

  // Which stores make the chain faster, where there is a choice.
  Stores faster(Stores ChainStores::*where) {
    constexpr Stores kChoices[] = {Stores::plain, Stores::streaming};
    std::vector<Entrant> entrants;
    for (Stores choice : kChoices) {
      ChainStores stores;
      stores.*where = choice;
      const std::vector<StepPass> passes = step_.chain(stores);
      entrants.push_back(
          {{}, where == &ChainStores::widen ? passes.front().run : passes.back().run});
    }
    return kChoices[fastest(run_in_turns(entrants, trial_))];
  }

  Json described(const std::string& name, const Times& times, size_t bytes) const {
    Json json = {{"name", name}, {"bytes_per_element", bytes}};
    json.update(measured(times, bytes, setting_.numel));
    return json;
  }

  Json described(const Side& side, const std::vector<Times>& times) const {
    Json json = described("all", side.total(times), side.bytes());
    json["passes"] = Json::array();
    for (size_t i = 0; i < side.passes.size(); ++i) {
      const StepPass& pass = side.passes[i];
      json["passes"].push_back(described(pass.name, times[side.first + i], pass.bytes_per_element));
    }
    return json;
  }

  const Setting& setting_;
  OffloadedStep step_;
  const StreamSpans stream_;
  const Repetition trial_;
  const StreamLoop loop_;
  const ChainStores stores_;
  std::vector<Entrant> entrants_;
  Side fused_;
  Side chain_;
};

void print_text(const Json& result) {
  const std::vector<Column> columns = {{"side", "", -10},
                                       {"name", "pass", -10},
                                       {"bytes_per_element", "bytes/element", 14},
                                       {"best_ms", "best ms", 10, "{:.2f}"},
                                       {"median_ms", "median ms", 11, "{:.2f}"},
                                       {"gb_per_s", "GB/s", 9, "{:.2f}"}};
  Json rows = Json::array();
  const auto add = [&](const char* side, Json row) {
    row["side"] = side;
    rows.push_back(std::move(row));
  };
  Json ceiling = result.at("ceiling");
  const std::string loop = ceiling.at("name");
  ceiling["name"] = "";
  add("ceiling", std::move(ceiling));
  for (const char* side : {"fused", "chain"}) {
    for (const Json& pass : result.at(side).at("passes")) add(side, pass);
    add(side, result.at(side));
  }
  fmt::print("{} elements, {} gradients and parameters, {} threads, {} rounds; ceiling: {}\n\n{}\n",
             result.at("numel").get<int64_t>(), result.at("dtype").get<std::string>(),
             result.at("threads").get<int>(), result.at("rounds").get<int>(), loop,
             table(columns, rows));
  const Json& required = result.at("required_speedup");
  fmt::print("fused against chain: {:.2f} x (of the best times {:.2f} x)\n",
             result.at("speedup").get<double>(), result.at("speedup_of_best").get<double>());
  fmt::print("required: {:.2f} x, which is {} of the bytes' ratio {:.2f}, and {:.2f} x\n",
             required.at(0).get<double>(), kRequiredOfBytes, result.at("bytes_ratio").get<double>(),
             required.at(1).get<double>());
  fmt::print("fused bytes a second against the ceiling's: {:.3f}\n",
             result.at("of_ceiling").get<double>());
}

Json bench_step(const BenchStepOptions& options) {
  const Setting setting(options);
  require_memory(OffloadedStep::bytes(setting.numel, setting.dtype));
  const TeamScope team(setting.threads);
  Json result = {{"bench", "step"},
                 {"numel", setting.numel},
                 {"dtype", name(setting.dtype)},
                 {"threads", setting.threads}};
  result.update(StepBench(setting).run());
  return result;
}

}  // namespace

void add_bench_step(CLI::App& bench) {
  auto options = std::make_shared<BenchStepOptions>();
  CLI::App* command = bench.add_subcommand(
      "step", "The CPU part of an offloaded optimizer step, fused against a chain of passes");
  command->add_option("--dtype", options->dtype,
                      "Of gradients and parameters: bf16 (the default) or fp16");
  add_optimizer_options(*command, *options);
  command->footer(
      "One micro-batch on one rank. Both sides start from 16-bit gradients in host memory that no\n"
      "cache holds, and end with AdamW's fp32 state updated and 16-bit parameters written.\n"
      "  fused  land: gradients are copied to their accumulator, their norm counted as they pass;\n"
      "         update: unscale, clip, AdamW, write back and cast in one pass\n"
      "  chain  gradients to fp32, norm, scale, AdamW, parameters to 16 bits: a pass each, with\n"
      "         streaming stores where a trial says that they help\n"
      "Bytes are those a pass reads and writes. All passes and the ceiling, which streams the\n"
      "update's bytes in place, take turns in every round; ratios are medians over the rounds.\n"
      "Example: strata bench step --seconds 10");
  run_bench(*command, options, bench_step, print_text);
}

}  // namespace strata::tools
