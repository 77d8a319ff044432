// strata bench pipeline: an AdamW step over state on disk, kept in one way or several, against what
// the disk and the update can do, measured beside it.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "io/block_file.h"
#include "strata/clock.h"
#include "strata/error.h"
#include "strata/grain.h"
#include "tools/bench.h"
#include "tools/bench_optimizer.h"
#include "tools/command.h"
#include "tools/pipeline_case.h"

namespace strata::tools {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kMemoryLimitBytes = uint64_t{2} << 30;  // of the process, at its peak
constexpr uint64_t kProcessBytes = uint64_t{256} << 20;    // beside what is planned
constexpr int64_t kFewestSteps = 3;

struct BenchPipelineOptions : BenchOptions, CodecOptions {
  bool against_fp32 = false;
  double numel = 64 << 20;
  double sub_group = 2 << 20;
  int staging = 8;
  std::string grad = "host";
  std::string param = "host";
  std::string path = ".";
  int threads = 0;
  double seconds = 20;
  int64_t steps = 0;
};

Tier host_or_nvme(const std::string& option, const std::string& value) {
  for (Tier tier : {Tier::host, Tier::nvme}) {
    if (value == name(tier)) return tier;
  }
  throw ConfigError(fmt::format("{} is \"{}\": say \"host\" or \"nvme\"", option, value));
}

// Elements, rounded up to whole grains: 1e9 is as good as 1000001536.
int64_t elements(const std::string& option, double value) {
  constexpr double kMost = 1e12;
  if (value < 1 || value > kMost || value != std::floor(value)) {
    throw ConfigError(fmt::format("{} is {}: say a whole number from 1 to 1e12", option, value));
  }
  return round_up(static_cast<int64_t>(value), kGrainNumel);
}

// A setting for each way to keep state.
std::vector<PipelineSetting> settings_of(const BenchPipelineOptions& options) {
  PipelineSetting setting;
  setting.numel = options.smoke ? 24 * kGrainNumel : elements("--numel", options.numel);
  setting.sub_group_numel =
      options.smoke ? 5 * kGrainNumel : elements("--sub-group", options.sub_group);
  setting.staging_buffers = options.staging;
  setting.grad = host_or_nvme("--grad", options.grad);
  setting.param = host_or_nvme("--param", options.param);
  setting.threads =
      options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency());
  setting.path = options.path;
  std::vector<StateForm> forms = codec_forms(options, DType::bf16, DType::bf16);
  const auto is_fp32 = [](const StateForm& form) {
    return form.master == Codec::fp32 && form.moments == Codec::fp32;
  };
  if (options.against_fp32 && std::none_of(forms.begin(), forms.end(), is_fp32)) {
    forms.insert(forms.begin(), StateForm{});
  }
  std::vector<PipelineSetting> settings;
  for (const StateForm& form : forms) {
    setting.master = form.master;
    setting.moments = form.moments;
    settings.push_back(setting);
  }
  return settings;
}

// Refuses what would not fit, before anything is allocated.
void require_room(const std::vector<PipelineSetting>& settings) {
  uint64_t memory = 0;
  uint64_t disk = 0;
  for (const PipelineSetting& setting : settings) {
    memory += PipelineCase::memory_bytes(setting);
    disk += PipelineCase::disk_bytes(setting);
  }
  if (memory + kProcessBytes > kMemoryLimitBytes) {
    throw OutOfBudget(
        fmt::format("the bench would hold {} MiB in memory, and stays below {}: put gradients and "
                    "parameters on nvme, take a smaller --sub-group or fewer --staging buffers, or "
                    "fewer codecs at a time",
                    memory >> 20, (kMemoryLimitBytes - kProcessBytes) >> 20),
        Tier::host, memory, kMemoryLimitBytes - kProcessBytes);
  }
  require_memory(memory);
  const std::string& path = settings.front().path;
  const uint64_t available = io::free_bytes(path);
  if (disk > available) {
    throw OutOfBudget(
        fmt::format("the bench writes files of {} MiB and '{}' has {} MiB free: ask for fewer "
                    "elements, or name another --path",
                    disk >> 20, path, available >> 20),
        Tier::nvme, disk, available);
  }
}

// The most this process has held in memory so far, in bytes.
uint64_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  std::string key;
  while (status >> key) {
    uint64_t kib = 0;
    if (key == "VmHWM:" && status >> kib) return kib * 1024;
    status.ignore(1 << 16, '\n');
  }
  throw Error("/proc/self/status does not say how much memory this process has held");
}

// What happens now, on standard error: in place on a terminal, a line a phase elsewhere.
class Progress {
 public:
  void show(const std::string& what, int64_t done, int64_t all) {
    if (done == all) {
      say(what + ": done");
    } else if (in_place_ && now_ns() - last_ns_ > 200'000'000) {
      last_ns_ = now_ns();
      fmt::print(stderr, "\r\033[K{}: {}%", what, 100 * done / all);
      std::fflush(stderr);
    }
  }
  void say(const std::string& line) const {
    fmt::print(stderr, "{}{}\n", in_place_ ? "\r\033[K" : "", line);
    std::fflush(stderr);
  }

 private:
  const bool in_place_ = isatty(STDERR_FILENO) != 0;
  int64_t last_ns_ = 0;
};

// A way to keep state, and a value a step.
struct Entry {
  explicit Entry(const PipelineSetting& setting) : measured(setting) {}

  PipelineCase measured;
  Times steps;
  Times transfers;  // alone, before and after the step
  Times updates;    // alone
  Times ceilings;   // the longer of the two
  std::vector<double> ratios;
};

class PipelineBench {
 public:
  PipelineBench(const BenchPipelineOptions& options, const std::vector<PipelineSetting>& settings)
      : options_(options) {
    for (const PipelineSetting& setting : settings) {
      entries_.push_back(std::make_unique<Entry>(setting));
    }
  }

  Json run() {
    for (const auto& entry : entries_) {
      entry->measured.fill(progress_of(fmt::format("{}: initial state", name_of(*entry))));
    }
    const int64_t begin_ns = now_ns();
    int64_t steps = 0;
    for (; goes_on(steps, begin_ns); ++steps) {
      for (const auto& entry : entries_) run_step(*entry, steps + 1);
    }
    for (const auto& entry : entries_) entry->measured.check_traffic(steps);
    check_memory();
    return result();
  }

 private:
  static std::string name_of(const Entry& entry) {
    const PipelineSetting& setting = entry.measured.setting();
    return fmt::format("master {}, moments {}", name(setting.master), name(setting.moments));
  }

  PipelineCase::Progress progress_of(std::string what) {
    return [this, what = std::move(what)](int64_t done, int64_t all) {
      progress_.show(what, done, all);
    };
  }

  bool goes_on(int64_t steps, int64_t begin_ns) const {
    if (options_.steps > 0) return steps < options_.steps;
    if (options_.smoke) return steps < 2;
    return steps < kFewestSteps || seconds_since(begin_ns) < options_.seconds;
  }

  void run_step(Entry& entry, int64_t step) {
    PipelineCase& measured = entry.measured;
    const std::string label = fmt::format("{}: step {}", name_of(entry), step);
    measured.write_gradients(step, progress_of(label + ", new gradients"));
    const double before_s = measured.ceiling().transfers_s();
    const double step_s = measured.run_step(step);
    const double after_s = measured.ceiling().transfers_s();
    const double transfers_s = (before_s + after_s) / 2;
    const double updates_s = measured.ceiling().updates_s();
    const double ceiling_s = std::max(transfers_s, updates_s);
    measured.check_sample(step);
    entry.steps.add(step_s);
    entry.transfers.add(transfers_s);
    entry.updates.add(updates_s);
    entry.ceilings.add(ceiling_s);
    entry.ratios.push_back(ceiling_s / step_s);
    progress_.say(
        fmt::format("{}: {:.2f} s, {:.3f} of its ceiling", label, step_s, ceiling_s / step_s));
  }

  static void check_memory() {
    const uint64_t peak = peak_resident_bytes();
    if (peak < kMemoryLimitBytes) return;
    throw OutOfBudget(fmt::format("the process held {} MiB in memory and must stay below {}",
                                  peak >> 20, kMemoryLimitBytes >> 20),
                      Tier::host, peak, kMemoryLimitBytes);
  }

  Json described(const Entry& entry) const {
    const PipelineSetting& setting = entry.measured.setting();
    const LinkBytes bytes = entry.measured.planned();
    const uint64_t read = bytes[static_cast<size_t>(Activity::nvme_read)];
    const uint64_t written = bytes[static_cast<size_t>(Activity::nvme_write)];
    const auto numel = static_cast<double>(setting.numel);
    const double step_s = entry.steps.median_seconds();
    return {{"master_codec", name(setting.master)},
            {"moment_codec", name(setting.moments)},
            {"read_bytes", read},
            {"written_bytes", written},
            {"read_per_parameter", static_cast<double>(read) / numel},
            {"written_per_parameter", static_cast<double>(written) / numel},
            {"step_s", step_s},
            {"io_s", entry.transfers.median_seconds()},
            {"update_s", entry.updates.median_seconds()},
            {"gb_per_s", static_cast<double>(read + written) / step_s * 1e-9},
            {"ratio", median(entry.ratios)},
            {"ratios", entry.ratios},
            {"of_first", entries_.front()->steps.speed_against(entry.steps)}};
  }

  Json result() const {
    const PipelineCase& first = entries_.front()->measured;
    const PipelineSetting& setting = first.setting();
    Json cases = Json::array();
    for (const auto& entry : entries_) cases.push_back(described(*entry));
    return {{"bench", "pipeline"},
            {"numel", setting.numel},
            {"grad", name(setting.grad)},
            {"param", name(setting.param)},
            {"sub_groups", first.sub_groups()},
            {"staging_buffers", setting.staging_buffers},
            {"threads", setting.threads},
            {"io", first.io_description()},
            {"rounds", entries_.front()->steps.rounds()},
            {"checked_numel", first.sampled_numel()},
            {"peak_resident_bytes", peak_resident_bytes()},
            {"cases", cases}};
  }

  const BenchPipelineOptions& options_;
  Progress progress_;
  std::vector<std::unique_ptr<Entry>> entries_;
};

void print_text(const Json& result) {
  fmt::print(
      "AdamW over {} elements, state on nvme, gradients on {}, parameters on {}\n"
      "{} sub-groups through {} staging buffers, {}, {} threads; medians of {} steps\n\n",
      result.at("numel").get<int64_t>(), result.at("grad").get<std::string>(),
      result.at("param").get<std::string>(), result.at("sub_groups").get<int64_t>(),
      result.at("staging_buffers").get<int>(), result.at("io").get<std::string>(),
      result.at("threads").get<int>(), result.at("rounds").get<int>());
  const std::vector<Column> columns = {{"master_codec", "master", -9},
                                       {"moment_codec", "moments", -8},
                                       {"read_per_parameter", "read B", 9, "{:.3f}"},
                                       {"written_per_parameter", "written B", 11, "{:.3f}"},
                                       {"step_s", "step s", 9, "{:.3f}"},
                                       {"io_s", "transfers s", 13, "{:.3f}"},
                                       {"update_s", "updates s", 11, "{:.3f}"},
                                       {"gb_per_s", "GB/s", 7, "{:.2f}"},
                                       {"ratio", "of ceiling", 12, "{:.3f}"},
                                       {"of_first", "of first", 10, "{:.3f}"}};
  fmt::print("{}\n", table(columns, result.at("cases")));
  fmt::print(
      "bytes are those of a parameter, counted, and as the formula says; {} elements checked, bit "
      "for bit,\nafter every step; peak memory {:.1f} MiB\n",
      result.at("checked_numel").get<int64_t>(),
      result.at("peak_resident_bytes").get<double>() / (1 << 20));
}

Json bench_pipeline(const BenchPipelineOptions& options) {
  const std::vector<PipelineSetting> settings = settings_of(options);
  require_room(settings);
  return PipelineBench(options, settings).run();
}

}  // namespace

void add_bench_pipeline(CLI::App& bench) {
  auto options = std::make_shared<BenchPipelineOptions>();
  CLI::App* command = bench.add_subcommand(
      "pipeline", "An optimizer step over state on disk against the disk and the update alone");
  command->add_option("--numel", options->numel,
                      "Elements, rounded up to 4096, as in 1e9; 64 Mi if not given");
  command->add_option("--sub-group", options->sub_group,
                      "Elements moved at a time, rounded up to 4096; 2 Mi if not given");
  command->add_option("--staging", options->staging, "Staging buffers; 8 if not given")
      ->check(CLI::Range(2, 64));
  command->add_option("--grad", options->grad, "Where gradients lie: host (the default) or nvme");
  command->add_option("--param", options->param,
                      "Where parameters lie: host (the default) or nvme");
  command->add_option("--path", options->path, "Directory of the files; here if not given")
      ->check(CLI::ExistingDirectory);
  command
      ->add_option("--threads", options->threads, "Threads of the update; all cores if not given")
      ->check(CLI::PositiveNumber);
  command->add_option("--seconds", options->seconds, "Repeat steps this long; 20 if not given")
      ->check(CLI::PositiveNumber);
  command->add_option("--steps", options->steps, "Do this many steps instead")
      ->check(CLI::PositiveNumber);
  add_codec_options(*command, *options);
  command->add_flag("--against-fp32", options->against_fp32,
                    "fp32 state too, and what part of its step a step takes");
  command->footer(
      "Master weights and moments are read from disk, updated and written back in every step, "
      "from\n"
      "new gradients: with fp32 12 bytes a parameter each way. Where codecs are several, each has\n"
      "files of its own, and they take turns, a step each. The ceiling is the larger of two "
      "times:\n"
      "the same transfers without an update, before and after each step, and the updates alone;\n"
      "\"of ceiling\" is the median of the steps' ratios, \"of first\" a step's part of the first\n"
      "line's. After each step a sample is compared with the same update done in memory. The\n"
      "process must stay below 2 GiB.\n"
      "Example: strata bench pipeline --numel 1e9 --grad nvme --param nvme --path /mnt/nvme "
      "--master-codec split16 --moment-codec int8 --against-fp32");
  run_bench(*command, options, bench_pipeline, print_text);
}

}  // namespace strata::tools
