// strata bench adam: the fused update of every optimizer against streaming the same bytes.
#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device/thread_team.h"
#include "kernels/ops/optimizer_ops.h"
#include "tools/bench_optimizer.h"
#include "tools/bench_stream.h"
#include "tools/command.h"

namespace strata::tools {
namespace {

using Json = nlohmann::ordered_json;

struct BenchAdamOptions : OptimizerBenchOptions, CodecOptions {
  std::string optimizer = "adamw";
  std::string isa;
  std::string grad_dtype = "bf16";
  std::string param_dtype = "bf16";
};

// The options' meaning. Throws ConfigError where they have none.
struct Setting : OptimizerBenchSetting {
  explicit Setting(const BenchAdamOptions& options);

  std::vector<OptimizerKind> optimizers;
  std::vector<std::string_view> isas;
  std::vector<StateForm> forms;
};

// Of one name, or all that this machine has; the best where none is named.
std::vector<std::string_view> isas_of(const std::string& value) {
  if (value.empty()) return {ops::active_isa()};
  const std::vector<std::string_view> all = ops::available_isas();
  std::vector<std::string_view> isas;
  for (size_t i : chosen("--isa", value, all)) isas.push_back(all[i]);
  return isas;
}

Setting::Setting(const BenchAdamOptions& options)
    : OptimizerBenchSetting(options),
      optimizers(chosen("--optimizer", options.optimizer, kOptimizers)),
      isas(isas_of(options.isa)),
      forms(codec_forms(options, float_dtype("--grad-dtype", options.grad_dtype),
                        float_dtype("--param-dtype", options.param_dtype))) {}

// The cases of one optimizer, each beside the ceiling.
class OptimizerBench {
 public:
  OptimizerBench(OptimizerKind kind, const StateForm& form, const Setting& setting)
      : kind_(kind),
        form_(form),
        setting_(setting),
        state_(kind, setting.numel, form),
        stream_(state_.stream_spans()),
        loop_(fastest_loop(stream_, {setting.repetition.seconds / 2, setting.repetition.rounds})) {
    for (std::string_view isa : setting.isas) {
      add_case(isa, Moments::ordinary);
      // Adagrad's sum only grows.
      if (moments_of(kind).exp_avg && form.moments == Codec::fp32) add_case(isa, Moments::decayed);
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
      cases_[i].update(measured(own, stream_bytes(stream_), setting_.numel));
      cases_[i]["ratio"] = own.speed_against(ceiling);
      cases_[i]["ratio_of_best"] = ceiling.best_seconds() / own.best_seconds();
    }
    Json ceiling = {{"loop", to_string(loop_)}};
    ceiling.update(measured(all_ceilings, stream_bytes(stream_), setting_.numel));
    return {{"optimizer", name(kind_)},
            {"master_codec", name(form_.master)},
            {"moment_codec", name(form_.moments)},
            {"bytes_per_element", stream_bytes(stream_)},
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
         [scalars, spans = state_.encoded_spans()] { ops::optimizer_update(scalars, spans); }});
    cases_.push_back({{"isa", isa}, {"moments", decayed ? "decayed" : "ordinary"}});
  }

  const OptimizerKind kind_;
  const StateForm form_;
  const Setting& setting_;
  const TrainingState state_;
  const StreamSpans stream_;
  const StreamLoop loop_;
  std::vector<Entrant> entrants_;
  Json cases_ = Json::array();
};

void print_text(const Json& result) {
  fmt::print("{} elements, {} gradients, {} parameters, {} threads\n\n",
             result.at("numel").get<int64_t>(), result.at("grad_dtype").get<std::string>(),
             result.at("param_dtype").get<std::string>(), result.at("threads").get<int>());
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
    fmt::print("{}, master {}, moments {}: {} bytes an element, {} rounds; ceiling: {}\n",
               optimizer.at("optimizer").get<std::string>(),
               optimizer.at("master_codec").get<std::string>(),
               optimizer.at("moment_codec").get<std::string>(),
               optimizer.at("bytes_per_element").get<int>(), optimizer.at("rounds").get<int>(),
               ceiling.at("loop").get<std::string>());
    ceiling.update({{"isa", "ceiling"}, {"moments", ""}, {"ratio", 1}, {"ratio_of_best", 1}});
    Json rows = {ceiling};
    for (const Json& one : optimizer.at("cases")) rows.push_back(one);
    fmt::print("{}\n", table(columns, rows));
  }
}

Json bench_adam(const BenchAdamOptions& options) {
  const Setting setting(options);
  const StateForm& dtypes = setting.forms.front();
  for (OptimizerKind kind : setting.optimizers) {
    for (const StateForm& form : setting.forms) {
      require_memory(TrainingState::bytes(kind, setting.numel, form));
    }
  }
  const TeamScope team(setting.threads);
  Json result = {{"bench", "adam"},
                 {"numel", setting.numel},
                 {"grad_dtype", name(dtypes.grad)},
                 {"param_dtype", name(dtypes.param)},
                 {"threads", setting.threads},
                 {"optimizers", Json::array()}};
  for (OptimizerKind kind : setting.optimizers) {
    for (const StateForm& form : setting.forms) {
      result["optimizers"].push_back(OptimizerBench(kind, form, setting).run());
    }
  }
  return result;
}

}  // namespace

void add_bench_adam(CLI::App& bench) {
  auto options = std::make_shared<BenchAdamOptions>();
  CLI::App* command =
      bench.add_subcommand("adam", "The fused optimizer update against streaming the same bytes");
  command->add_option("--optimizer", options->optimizer,
                      "adam, adamw (the default), adagrad, lion, sgd, or all of them: all");
  command->add_option("--isa", options->isa,
                      "Instruction set, or all that this machine has: all; the best if not given");
  command->add_option("--grad-dtype", options->grad_dtype, "fp32, bf16 (the default) or fp16");
  command->add_option("--param-dtype", options->param_dtype, "fp32, bf16 (the default) or fp16");
  add_codec_options(*command, *options);
  add_optimizer_options(*command, *options);
  command->footer(
      "The ceiling is the fastest of several loops that read and write the same bytes in place,\n"
      "with next to no arithmetic; each repetition of a case follows one of the ceiling. The "
      "column\n"
      "\"of ceiling\" is the median of these pairs' ratios, \"of its best\" the ratio of the best\n"
      "times. \"decayed\" moments drop below the smallest normal number in every step.\n"
      "Example: strata bench adam --optimizer all --isa all --json");
  run_bench(*command, options, bench_adam, print_text);
}

}  // namespace strata::tools
