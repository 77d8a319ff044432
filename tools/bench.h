// What the benches of `strata bench` share: memory, repetition in turns, tables and JSON.
#pragma once

#include <CLI/CLI.hpp>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace strata::tools {

// Each adds its subcommand to `strata bench`.
void add_bench_adam(CLI::App& bench);
void add_bench_io(CLI::App& bench);
void add_bench_layers(CLI::App& bench);
void add_bench_step(CLI::App& bench);
void add_bench_pipeline(CLI::App& bench);

// What every bench takes, and adds to its own options.
struct BenchOptions {
  bool json = false;
  bool smoke = false;
};
void add_options(CLI::App& command, BenchOptions& options);

// A bench's result, as one JSON object or as `print_text` has it.
void print(const BenchOptions& options, const nlohmann::ordered_json& result,
           void (*print_text)(const nlohmann::ordered_json&));

// Has `command` run a bench: what measure(options) returns is printed. The command keeps `options`.
template <typename Options>
void run_bench(CLI::App& command, const std::shared_ptr<Options>& options,
               nlohmann::ordered_json (*measure)(const Options&),
               void (*print_text)(const nlohmann::ordered_json&)) {
  add_options(command, static_cast<BenchOptions&>(*options));
  command.callback([=] { print(*options, measure(*options), print_text); });
}

// The one of `all` that has this name, or all of them for "all". Throws ConfigError naming the
// option.
std::vector<size_t> chosen(const std::string& option, const std::string& value,
                           std::span<const std::string_view> names);
template <typename T, size_t N>
std::vector<T> chosen(const std::string& option, const std::string& value,
                      const std::array<T, N>& all) {
  std::vector<std::string_view> names;
  for (const T& one : all) names.push_back(name(one));
  std::vector<T> found;
  for (size_t i : chosen(option, value, names)) found.push_back(all[i]);
  return found;
}

// How often a bench repeats: `rounds` times, or while `seconds` last where that is 0.
struct Repetition {
  double seconds = 0;
  int64_t rounds = 0;
};

// Something measured: run() is timed, prepare() before it is not.
struct Entrant {
  std::function<void()> prepare;
  std::function<void()> run;
};

// Of at least one value.
double median(std::vector<double> values);

// What one entrant took, a value a round.
class Times {
 public:
  void add(double seconds) { seconds_.push_back(seconds); }
  void add(const Times& other) {
    seconds_.insert(seconds_.end(), other.seconds_.begin(), other.seconds_.end());
  }
  // Round for round what this and `other`, of as many rounds, took together.
  Times operator+(const Times& other) const;
  // Of at least one round.
  double best_seconds() const;
  double median_seconds() const;
  size_t rounds() const { return seconds_.size(); }
  // How fast this was by the measure of `other`, round for round: the median of their ratios. What
  // disturbs the machine for longer than a round disturbs both, and drops out.
  double speed_against(const Times& other) const;

 private:
  std::vector<double> seconds_;
};

// Runs all entrants once to warm up, then in turns, so that whatever disturbs the machine disturbs
// each of them; at least three rounds unless `rounds` says fewer.
std::vector<Times> run_in_turns(std::span<const Entrant> entrants, const Repetition& repetition);

// Which of them has the best time.
size_t fastest(std::span<const Times> times);

// Zero-filled elements on huge pages, where the kernel has them, which the calling thread's team
// touches first, each thread its own range of parallel_for over grains. Throws DeviceError when the
// machine has no more.
class BenchMemory {
 public:
  BenchMemory(int64_t numel, size_t element_bytes);
  ~BenchMemory();
  BenchMemory(const BenchMemory&) = delete;
  BenchMemory& operator=(const BenchMemory&) = delete;

  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(aligned_);
  }

 private:
  size_t mapped_bytes_;
  void* mapped_;
  std::byte* aligned_;
};

// Throws OutOfBudget when the machine's free memory is less; nothing has been allocated by then.
void require_memory(uint64_t bytes);

// A column of a table: what rows have under `key`, text or a number, which is printed by `format`.
struct Column {
  std::string key;
  std::string title;
  int width = 12;  // negative: to the left
  std::string format = "{}";
};

// An array of objects as text, under the columns' titles.
std::string table(std::span<const Column> columns, const nlohmann::ordered_json& rows);

}  // namespace strata::tools
