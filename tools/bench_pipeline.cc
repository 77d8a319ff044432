// strata bench pipeline: an AdamW step over state on disk against what the disk and the update can
// do, measured beside it.
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
#include "tools/command.h"
#include "tools/pipeline_rig.h"

namespace strata::tools {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kMemoryLimitBytes = uint64_t{2} << 30;  // of the process, at its peak
constexpr uint64_t kProcessBytes = uint64_t{256} << 20;    // beside what is planned
constexpr int64_t kFewestSteps = 3;

struct BenchPipelineOptions {
  double numel = 64 << 20;
  double sub_group = 2 << 20;
  int staging = 4;
  std::string grad = "host";
  std::string param = "host";
  std::string path = ".";
  int threads = 0;
  double seconds = 20;
  int64_t steps = 0;
  bool json = false;
  bool smoke = false;
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

PipelineSetting setting_of(const BenchPipelineOptions& options) {
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
  return setting;
}

// Refuses what would not fit, before anything is allocated.
void require_room(const PipelineSetting& setting) {
  const uint64_t memory = PipelineRig::memory_bytes(setting);
  if (memory + kProcessBytes > kMemoryLimitBytes) {
    throw OutOfBudget(
        fmt::format("the bench would hold {} MiB in memory, and stays below {}: put gradients and "
                    "parameters on nvme, or take a smaller --sub-group or fewer --staging buffers",
                    memory >> 20, (kMemoryLimitBytes - kProcessBytes) >> 20),
        Tier::host, memory, kMemoryLimitBytes - kProcessBytes);
  }
  require_memory(memory);
  const uint64_t disk = PipelineRig::disk_bytes(setting);
  const uint64_t available = io::free_bytes(setting.path);
  if (disk > available) {
    throw OutOfBudget(
        fmt::format("the bench writes files of {} MiB and '{}' has {} MiB free: ask for fewer "
                    "elements, or name another --path",
                    disk >> 20, setting.path, available >> 20),
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

// One step beside what it could have taken.
struct Round {
  double step_s = 0;
  double io_s = 0;      // the transfers alone, before and after the step
  double update_s = 0;  // the updates alone
  double ceiling_s() const { return std::max(io_s, update_s); }
  double ratio() const { return ceiling_s() / step_s; }
};

class PipelineBench {
 public:
  explicit PipelineBench(const BenchPipelineOptions& options)
      : setting_(setting_of(options)), rig_(setting_), options_(options) {}

  Json run() {
    rig_.fill([&](int64_t done, int64_t all) { progress_.show("initial state", done, all); });
    const int64_t begin_ns = now_ns();
    double transfers_before = transfers_s();
    while (goes_on(begin_ns)) {
      const auto step = static_cast<int64_t>(rounds_.size()) + 1;
      rig_.write_gradients(step, [&](int64_t done, int64_t all) {
        progress_.show(fmt::format("step {}: new gradients", step), done, all);
      });
      Round round;
      round.step_s = rig_.run_step(step);
      const double transfers_after = transfers_s();
      round.io_s = (transfers_before + transfers_after) / 2;
      round.update_s = updates_s();
      transfers_before = transfers_after;
      rig_.check_sample(step);
      rounds_.push_back(round);
      progress_.say(fmt::format("step {}: {:.2f} s, {:.3f} of its ceiling", step, round.step_s,
                                round.ratio()));
    }
    rig_.check_traffic(static_cast<int64_t>(rounds_.size()));
    check_memory();
    return result();
  }

 private:
  bool goes_on(int64_t begin_ns) const {
    const auto steps = static_cast<int64_t>(rounds_.size());
    if (options_.steps > 0) return steps < options_.steps;
    if (options_.smoke) return steps < 2;
    const double elapsed = static_cast<double>(now_ns() - begin_ns) * 1e-9;
    return steps < kFewestSteps || elapsed < options_.seconds;
  }

  // Of all sub-groups, by the share that was measured.
  double transfers_s() {
    return rig_.run_transfers() * static_cast<double>(setting_.numel) /
           static_cast<double>(rig_.transferred_numel());
  }
  double updates_s() {
    double best = rig_.run_update();
    for (int i = 0; i < 4; ++i) best = std::min(best, rig_.run_update());
    return best * static_cast<double>(setting_.numel) /
           static_cast<double>(std::min(setting_.sub_group_numel, setting_.numel));
  }

  static void check_memory() {
    const uint64_t peak = peak_resident_bytes();
    if (peak < kMemoryLimitBytes) return;
    throw OutOfBudget(fmt::format("the process held {} MiB in memory and must stay below {}",
                                  peak >> 20, kMemoryLimitBytes >> 20),
                      Tier::host, peak, kMemoryLimitBytes);
  }

  Json result() const {
    std::vector<double> ratios, steps, io, updates;
    for (const Round& round : rounds_) {
      ratios.push_back(round.ratio());
      steps.push_back(round.step_s);
      io.push_back(round.io_s);
      updates.push_back(round.update_s);
    }
    const LinkBytes bytes = rig_.planned();
    const uint64_t read = bytes[static_cast<size_t>(Activity::nvme_read)];
    const uint64_t written = bytes[static_cast<size_t>(Activity::nvme_write)];
    return {{"bench", "pipeline"},
            {"numel", setting_.numel},
            {"grad", name(setting_.grad)},
            {"param", name(setting_.param)},
            {"sub_groups", rig_.sub_groups()},
            {"staging_buffers", setting_.staging_buffers},
            {"threads", setting_.threads},
            {"io", rig_.io_description()},
            {"rounds", rounds_.size()},
            {"read_bytes", read},
            {"written_bytes", written},
            {"step_s", median(steps)},
            {"io_s", median(io)},
            {"update_s", median(updates)},
            {"gb_per_s", static_cast<double>(read + written) / median(steps) * 1e-9},
            {"ratio", median(ratios)},
            {"ratios", ratios},
            {"checked_numel", rig_.sampled_numel()},
            {"peak_resident_bytes", peak_resident_bytes()}};
  }

  const PipelineSetting setting_;
  PipelineRig rig_;
  const BenchPipelineOptions& options_;
  Progress progress_;
  std::vector<Round> rounds_;
};

void print_text(const Json& result) {
  const auto number = [&](const char* key) { return result.at(key).get<double>(); };
  fmt::print(
      "AdamW over {} elements, state on nvme, gradients on {}, parameters on {}\n"
      "{} sub-groups through {} staging buffers, {}, {} threads\n\n",
      result.at("numel").get<int64_t>(), result.at("grad").get<std::string>(),
      result.at("param").get<std::string>(), result.at("sub_groups").get<int64_t>(),
      result.at("staging_buffers").get<int>(), result.at("io").get<std::string>(),
      result.at("threads").get<int>());
  fmt::print("a step          {:>9.3f} s   median of {}\n", number("step_s"),
             result.at("rounds").get<int>());
  fmt::print("transfers alone {:>9.3f} s   same mix, block size and depth\n", number("io_s"));
  fmt::print("updates alone   {:>9.3f} s\n", number("update_s"));
  fmt::print("of the ceiling  {:>9.3f}     median of the steps' ratios\n", number("ratio"));
  fmt::print("read, written   {:>9.1f} MiB and {:.1f}, as the formula says; {:.2f} GB/s\n",
             number("read_bytes") / (1 << 20), number("written_bytes") / (1 << 20),
             number("gb_per_s"));
  fmt::print("checked         {:>9} elements, bit for bit, after every step\n",
             result.at("checked_numel").get<int64_t>());
  fmt::print("peak memory     {:>9.1f} MiB\n", number("peak_resident_bytes") / (1 << 20));
}

void bench_pipeline(const BenchPipelineOptions& options) {
  require_room(setting_of(options));
  const Json result = PipelineBench(options).run();
  options.json ? fmt::print("{}\n", result.dump(2)) : print_text(result);
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
  command->add_option("--staging", options->staging, "Staging buffers; 4 if not given")
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
  command->add_flag("--json", options->json, "Print one JSON object");
  command->add_flag("--smoke", options->smoke, "A size that shows that it runs, and no speed");
  command->footer(
      "Master weights and moments (12 bytes an element) are read from disk, updated and written "
      "back\n"
      "in every step, from new gradients. The ceiling is the larger of two times: the same "
      "transfers\n"
      "without an update, before and after each step, and the updates alone. After each step a "
      "sample\n"
      "is compared with the same update done in memory. The process must stay below 2 GiB.\n"
      "Example: strata bench pipeline --numel 1e9 --grad nvme --param nvme --path /mnt/nvme");
  command->callback([options] { bench_pipeline(*options); });
}

}  // namespace strata::tools
