// strata train: trains a GPT-2 on text.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "strata/engine.h"
#include "strata/gpt2_files.h"
#include "strata/text_corpus.h"
#include "tools/command.h"
#include "tools/text_sample.h"
#include "tools/train_report.h"

namespace strata::tools {
namespace {

struct TrainOptions {
  std::string model;
  std::string config;
  std::string data;
  std::string init_from;
  int64_t steps = 0;
  double max_seconds = std::numeric_limits<double>::infinity();
  int64_t sequence = 0;
  int64_t validate_every = 0;
  int64_t validation_batches = 0;
  std::string metrics;
  std::string trace;
  std::string output;
  std::string resume;
  int64_t checkpoint_every = 0;
  int keep = 0;
  bool digest = false;
  int64_t sample = 0;
  std::optional<uint64_t> seed;
  std::string device;
};

const std::map<std::string, DeviceChoice> kDevices = {
    {"auto", DeviceChoice::automatic}, {"host", DeviceChoice::host}, {"cuda", DeviceChoice::cuda}};

// Why training ends with the step under way; the largest of all ranks' counts.
enum StopReason : int { kGoOn, kTimeIsUp, kInterrupted };
std::atomic<int> stop_reason = kGoOn;

// The first SIGINT or SIGTERM; a second one ends at once.
extern "C" void request_stop(int signal_number) {
  stop_reason.store(kInterrupted);
  std::signal(signal_number, SIG_DFL);
}

class StderrLog final : public LogSink {
 public:
  void log(LogLevel level, std::string_view message) override {
    fmt::print(stderr, "{}{}\n", level == LogLevel::warning ? "warning: " : "", message);
  }
};

// One rank's training; rank 0 speaks for all.
class Training {
 public:
  explicit Training(const TrainOptions& options)
      : options_(options),
        world_(World::from_environment()),
        gpt2_(models::Gpt2Config::from_file(options.model)),
        config_(load_config()),
        sequence_(options.sequence > 0 ? options.sequence : gpt2_.n_positions),
        corpus_(TextCorpus::from_path(options.data, sequence_)),
        metrics_(speaks() ? options.metrics : std::string()) {
    if (gpt2_.vocab_size < TextCorpus::kVocab) {
      throw ConfigError(
          fmt::format("text is trained byte by byte: set vocab_size in '{}' to {} or more",
                      options.model, TextCorpus::kVocab));
    }
    check_trace_path();
  }

  void run() {
    Engine::Options engine_options;
    engine_options.micro_batch = {config_.micro_batch, sequence_};
    engine_options.keep_trace = !options_.trace.empty();
    engine_options.log = speaks() ? &log_ : nullptr;
    engine_options.data_hash = corpus_.hash();
    engine_options.run_directory = options_.output;
    engine_options.resume = options_.resume;
    engine_options.stop = &stop_reason;
    engine_options.stuck = [who = speaker()](const std::string& what) {
      fmt::print(stderr, "{}: {}\n", who, what);
      std::_Exit(kStuck);
    };
    if (!options_.init_from.empty()) {
      engine_options.initial_values = models::read_gpt2(options_.init_from, gpt2_);
    }
    baselines_ = ngram_baselines(corpus_);  // before ranks begin to wait for each other
    Engine engine(models::gpt2(gpt2_), config_, world_, engine_options);
    // One that ended at its last step may still owe its checkpoint.
    const bool may_be_done =
        engine.plan().recovery == "step" && engine.steps_done() == options_.steps;
    if (engine.steps_done() >= options_.steps && !may_be_done) {
      throw ConfigError(fmt::format("'{}' is at step {} already: ask for more with --steps",
                                    options_.resume, engine.steps_done()));
    }
    keeps_run_ = engine.plan().recovery != "none";
    if (speaks()) introduce(engine);
    const bool interrupted = train(engine);
    say("{}", totals_.table(engine.plan()));
    keep_state(engine, interrupted);
    // A launcher that was interrupted kills its ranks soon.
    if (!interrupted) judge(engine);
    if (!options_.trace.empty()) {
      engine.write_trace(trace_path(world_.rank));
      say("trace: {} (open it in ui.perfetto.dev)\n", options_.trace);
      if (world_.size > 1) {
        say("the other ranks' traces: {}.rankN\n", options_.trace);
      }
    }
    if (options_.digest) say("digest {}\n", engine.digest());
  }

 private:
  bool speaks() const { return world_.rank == 0; }
  // Arguments are computed on every rank: some are collective.
  template <typename... Values>
  void say(fmt::format_string<Values...> format, Values&&... values) const {
    if (speaks()) fmt::print(format, std::forward<Values>(values)...);
  }

  std::string trace_path(int rank) const {
    return rank == 0 ? options_.trace : fmt::format("{}.rank{}", options_.trace, rank);
  }

  Config load_config() const {
    Config config = Config::from_file(options_.config, world_.size);
    if (options_.seed) config.seed = *options_.seed;
    if (!options_.device.empty()) config.device = kDevices.at(options_.device);
    return config;
  }

  void check_trace_path() const {
    if (options_.trace.empty()) return;
    const std::string path = trace_path(world_.rank);
    std::FILE* file = std::fopen(path.c_str(), "w");
    if (file == nullptr) {
      throw ConfigError(fmt::format("--trace '{}' cannot be written: name another file", path));
    }
    std::fclose(file);
  }

  void introduce(const Engine& engine) {
    for (const std::string& line : engine.description()) fmt::print("{}\n", line);
    if (!config_.no_effect_keys.empty()) {
      fmt::print("keys without effect here: {}\n", fmt::join(config_.no_effect_keys, ", "));
    }
    fmt::print("{}", to_string(engine.plan()));
    fmt::print("data: {} files ({} duplicates dropped), {} bytes to train on, {} held out\n",
               corpus_.files(), corpus_.duplicate_files(), corpus_.train().size(),
               corpus_.validation().size());
    fmt::print(
        "baselines on the held-out bytes, nats/byte: unigram {:.4f}, bigram {:.4f}, trigram "
        "{:.4f}\n",
        baselines_.unigram, baselines_.bigram, baselines_.trigram);
    std::fflush(stdout);
  }

  // So that nothing of the run is lost with its process. Where every step is recoverable, an
  // interrupted run has kept its state, and a finished one needs no more than its checkpoint.
  void keep_state(Engine& engine, bool interrupted) {
    if (!keeps_run_) return;
    const bool recovers_steps = engine.plan().recovery == "step";
    if (recovers_steps && interrupted) {
      engine.settle();
      say("step {} is kept: go on with --resume\n", engine.steps_done());
      return;
    }
    tell(engine.await_checkpoints());
    if (saved_step_ != engine.steps_done()) {
      say("checkpoint: {}\n", engine.save_checkpoint(options_.keep));
    }
    if (recovers_steps) engine.remove_state_files();
  }

  void save_if_due(Engine& engine, Progress& progress) {
    if (options_.checkpoint_every == 0 || !keeps_run_) return;
    if (engine.steps_done() % options_.checkpoint_every != 0) return;
    progress.finish();
    engine.begin_checkpoint(options_.keep);
    // What is not copied beside the steps is over already.
    if (engine.plan().recovery != "step") tell(engine.await_checkpoints());
  }

  // On the way a full disk is no reason to stop.
  void tell(const std::vector<CheckpointOutcome>& checkpoints) {
    for (const CheckpointOutcome& checkpoint : checkpoints) {
      if (checkpoint.failure.empty()) {
        saved_step_ = checkpoint.step;
        say("checkpoint: {}\n", checkpoint.path);
      } else if (speaks()) {
        log_.log(LogLevel::warning,
                 fmt::format("no checkpoint of step {}: {}", checkpoint.step, checkpoint.failure));
      }
    }
  }

  // Validation and sample.
  void judge(Engine& engine) {
    const double validation = validate(engine);
    say("validation loss {:.4f} nats/byte at step {} (unigram {:.4f}, bigram {:.4f}, trigram "
        "{:.4f}): {} the trigram model\n",
        validation, engine.steps_done(), baselines_.unigram, baselines_.bigram, baselines_.trigram,
        validation < baselines_.trigram ? "better than" : "not yet better than");
    if (options_.sample > 0) print_sample(engine);
  }

  // Whether it was interrupted.
  bool train(Engine& engine) {
    TextSampler sampler(corpus_, sequence_, config_.seed, world_);
    sampler.seek(engine.data_position());
    std::vector<OwnedBatch> batches(static_cast<size_t>(config_.accumulation_steps));
    for (OwnedBatch& batch : batches) batch.shape = {config_.micro_batch, sequence_};
    // To mpirun's ranks everything looks like a terminal.
    const bool in_place = world_.size == 1 && isatty(STDOUT_FILENO) != 0;
    Progress progress({options_.steps, options_.max_seconds, in_place});
    double trained_seconds = 0;  // without validation
    int64_t skipped_in_a_row = 0;
    // Such a run ends at the smallest loss scale.
    const bool scale_falls = config_.dtype == DType::fp16 && config_.loss_scale.dynamic();
    int stop = kGoOn;
    while (engine.steps_done() < options_.steps && stop == kGoOn) {
      std::vector<Batch> views;
      for (OwnedBatch& batch : batches) {
        sampler.next(batch);
        views.push_back(batch.view());
      }
      engine.set_data_position(sampler.position());
      const StepResult result = engine.train_step(views);
      stop = result.stop;
      trained_seconds += result.seconds;
      if (trained_seconds >= options_.max_seconds) {
        int reason = kGoOn;
        stop_reason.compare_exchange_strong(reason, kTimeIsUp);
      }
      totals_.add(result);
      metrics_.write(result);
      if (speaks()) progress.show(result);
      if (!result.checkpoints.empty()) progress.finish();
      tell(result.checkpoints);
      skipped_in_a_row = result.skipped && !scale_falls ? skipped_in_a_row + 1 : 0;
      if (skipped_in_a_row == kMaxSkipped) {
        throw Error(
            fmt::format("{} steps in a row had gradients that are not finite: lower the learning "
                        "rate{}",
                        kMaxSkipped, config_.dtype == DType::fp16 ? " or fp16.loss_scale" : ""));
      }
      const bool validation_due = options_.validate_every > 0 && !result.skipped &&
                                  engine.steps_done() % options_.validate_every == 0;
      if (validation_due) {
        progress.finish();
        say("step {}  validation loss {:.4f}\n", engine.steps_done(), validate(engine));
      }
      if (!result.skipped) save_if_due(engine, progress);
    }
    progress.finish();
    if (stop == kInterrupted) say("stopped after step {}\n", engine.steps_done());
    return stop == kInterrupted;
  }

  double validate(Engine& engine) {
    const auto owned = validation_batches(corpus_, {config_.micro_batch, sequence_}, world_);
    std::vector<Batch> views;
    for (const OwnedBatch& batch : owned) views.push_back(batch.view());
    if (options_.validation_batches > 0) {
      views.resize(std::min(views.size(), static_cast<size_t>(options_.validation_batches)));
    }
    constexpr double kLongSeconds = 10;
    const double expected = totals_.forward_seconds() * static_cast<double>(views.size()) /
                            static_cast<double>(config_.accumulation_steps);
    if (expected > kLongSeconds) {
      say("validating on {} batches, about {:.0f} s (--validation-batches takes fewer)\n",
          views.size(), expected);
    }
    const double loss = engine.evaluate(views);
    metrics_.write_validation(engine.steps_done(), loss);
    return loss;
  }

  // What the model makes of the beginning of the held-out text.
  void print_sample(Engine& engine) const {
    const std::vector<uint8_t>& held_out = corpus_.validation();
    const std::string prompt(held_out.begin(), held_out.begin() + sequence_ / 2);
    const std::string text =
        continue_text(engine, prompt, {options_.sample, sequence_, config_.seed});
    say("sample: {} bytes after the first {} of the held-out text\n---\n{}{}\n---\n",
        options_.sample, prompt.size(), printable(prompt), printable(text));
  }

  static constexpr int64_t kMaxSkipped = 20;

  const TrainOptions options_;
  StderrLog log_;
  const World world_;
  const models::Gpt2Config gpt2_;
  const Config config_;
  const int64_t sequence_;
  const TextCorpus corpus_;
  MetricsFile metrics_;
  NgramBaselines baselines_;
  RunTotals totals_;
  bool keeps_run_ = false;
  int64_t saved_step_ = -1;  // of the last checkpoint
};

}  // namespace

void add_train(CLI::App& app) {
  auto options = std::make_shared<TrainOptions>();
  CLI::App* command = app.add_subcommand("train", "Train a GPT-2 on text, byte by byte");
  command
      ->add_option("--model", options->model, "Model: Hugging Face's config.json, model_type gpt2")
      ->required();
  command
      ->add_option("--config", options->config,
                   "Run: DeepSpeed's ds_config.json; see docs/configuration.md")
      ->required();
  command->add_option("--data", options->data, "Text to train on: a file or a directory")
      ->required();
  command->add_option("--steps", options->steps, "Optimizer steps")
      ->required()
      ->check(CLI::PositiveNumber);
  command->add_option("--init-from", options->init_from,
                      "Start with the weights in this directory, as Hugging Face's transformers "
                      "saves them (save_pretrained)");
  command
      ->add_option("--max-seconds", options->max_seconds,
                   "Stop when this many seconds of training have passed")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--sequence", options->sequence,
                   "Tokens a row; the model's n_positions if not given")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--validate-every", options->validate_every,
                   "Print the validation loss every N steps")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--validation-batches", options->validation_batches,
                   "Validate on the first N micro-batches of a rank; all of the held-out text if "
                   "not given")
      ->check(CLI::PositiveNumber);
  command->add_option("--metrics", options->metrics, "Write a line of JSON a step to this file");
  command->add_option("--trace", options->trace,
                      "Write a Chrome trace (Perfetto opens it) to this file");
  command
      ->add_option("--sample", options->sample,
                   "Print N bytes of text by the trained model at the end")
      ->check(CLI::PositiveNumber);
  command->add_option(
      "--output", options->output,
      "Directory of the run, a new one: checkpoints, and what a killed run is found "
      "by; without it nothing is kept");
  command->add_option("--resume", options->resume,
                      "Go on with the run of this directory, or from this checkpoint");
  command
      ->add_option("--checkpoint-every", options->checkpoint_every,
                   "Save a checkpoint every N steps, beside the one at the end")
      ->check(CLI::PositiveNumber);
  command->add_option("--keep", options->keep, "Keep the newest N checkpoints; all if not given")
      ->check(CLI::PositiveNumber);
  command->add_flag("--digest", options->digest, "Print a hash of the training state at the end");
  command->add_option("--seed", options->seed,
                      "Seed of initial values and data order, over the configuration's");
  command
      ->add_option("--device", options->device,
                   "What computes, over the configuration's strata.device: auto, host or cuda")
      ->check(CLI::IsMember(kDevices));
  command->footer(
      "Under mpirun, torchrun or srun each process is a rank, and rank 0 prints. After Ctrl-C\n"
      "mpirun kills its ranks in a second, unless --mca odls_base_sigkill_timeout gives them time\n"
      "for their step.\n"
      "Ctrl-C finishes the step under way on all ranks and closes with the tables; a second one "
      "ends at once.\n"
      "Example: strata train --model gpt2.json --config ds_config.json --data texts/ --steps 500");
  command->callback([options] {
    std::signal(SIGINT, request_stop);
    std::signal(SIGTERM, request_stop);
    Training(*options).run();
  });
}

}  // namespace strata::tools
