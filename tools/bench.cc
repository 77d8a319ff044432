#include "tools/bench.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/plan/planner.h"
#include "kernels/device/host_memory.h"
#include "kernels/device/thread_team.h"
#include "strata/clock.h"
#include "strata/error.h"
#include "strata/grain.h"
#include "tools/command.h"

namespace strata::tools {
namespace {

double timed_run(const Entrant& entrant) {
  if (entrant.prepare) entrant.prepare();
  const int64_t begin_ns = now_ns();
  entrant.run();
  return seconds_since(begin_ns);
}

std::string cell(const Column& column, const nlohmann::ordered_json& row) {
  const auto& value = row.at(column.key);
  if (value.is_number()) return fmt::format(fmt::runtime(column.format), value.get<double>());
  return value.get<std::string>();
}

std::string padded(const std::string& text, int width) {
  return width < 0 ? fmt::format("{:<{}}", text, -width) : fmt::format("{:>{}}", text, width);
}

}  // namespace

Times Times::operator+(const Times& other) const {
  Times sum = *this;
  for (size_t i = 0; i < rounds(); ++i) sum.seconds_[i] += other.seconds_.at(i);
  return sum;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

double Times::best_seconds() const { return *std::min_element(seconds_.begin(), seconds_.end()); }

double Times::median_seconds() const { return median(seconds_); }

double Times::speed_against(const Times& other) const {
  std::vector<double> ratios;
  for (size_t i = 0; i < rounds(); ++i) ratios.push_back(other.seconds_[i] / seconds_[i]);
  return median(std::move(ratios));
}

std::vector<Times> run_in_turns(std::span<const Entrant> entrants, const Repetition& repetition) {
  constexpr int64_t kFewestRounds = 3;
  for (const Entrant& entrant : entrants) timed_run(entrant);
  std::vector<Times> times(entrants.size());
  const int64_t begin_ns = now_ns();
  const auto go_on = [&](int64_t round) {
    if (repetition.rounds > 0) return round < repetition.rounds;
    return round < kFewestRounds || seconds_since(begin_ns) < repetition.seconds;
  };
  for (int64_t round = 0; go_on(round); ++round) {
    for (size_t i = 0; i < entrants.size(); ++i) times[i].add(timed_run(entrants[i]));
  }
  return times;
}

size_t fastest(std::span<const Times> times) {
  const auto by_best = [](const Times& a, const Times& b) {
    return a.best_seconds() < b.best_seconds();
  };
  return static_cast<size_t>(std::min_element(times.begin(), times.end(), by_best) - times.begin());
}

// A huge page more than asked, so that an aligned start lies within.
BenchMemory::BenchMemory(int64_t numel, size_t element_bytes)
    : mapped_bytes_(static_cast<size_t>(numel) * element_bytes + kHugePageBytes),
      mapped_(mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                   0)) {
  if (mapped_ == MAP_FAILED) {
    throw DeviceError(fmt::format("mapping {} bytes of memory for a bench: {}", mapped_bytes_,
                                  std::strerror(errno)));
  }
  const auto base = reinterpret_cast<uintptr_t>(mapped_);
  aligned_ = static_cast<std::byte*>(mapped_) + (kHugePageBytes - base % kHugePageBytes);
  // Only a hint: a kernel without huge pages refuses it, and small pages do.
  madvise(mapped_, mapped_bytes_, MADV_HUGEPAGE);
  parallel_for(numel, kGrainNumel, [&](int64_t begin, int64_t end) {
    std::memset(aligned_ + static_cast<size_t>(begin) * element_bytes, 0,
                static_cast<size_t>(end - begin) * element_bytes);
  });
}

BenchMemory::~BenchMemory() { munmap(mapped_, mapped_bytes_); }

void require_memory(uint64_t bytes) {
  const uint64_t available = engine::MachineMemory::of_host({}, 1).host_bytes;
  if (bytes <= available) return;
  throw OutOfBudget(
      fmt::format("the bench needs {} MiB of memory and {} MiB are free: ask for fewer elements",
                  bytes >> 20, available >> 20),
      Tier::host, bytes, available);
}

void add_options(CLI::App& command, BenchOptions& options) {
  command.add_flag("--json", options.json, "Print one JSON object");
  command.add_flag("--smoke", options.smoke,
                   "A size and number of repetitions that show that it runs, and no speed");
}

void print(const BenchOptions& options, const nlohmann::ordered_json& result,
           void (*print_text)(const nlohmann::ordered_json&)) {
  options.json ? fmt::print("{}\n", result.dump(2)) : print_text(result);
}

std::vector<size_t> chosen(const std::string& option, const std::string& value,
                           std::span<const std::string_view> names) {
  std::vector<size_t> found;
  for (size_t i = 0; i < names.size(); ++i) {
    if (value == "all" || value == names[i]) found.push_back(i);
  }
  if (!found.empty()) return found;
  throw ConfigError(fmt::format("{} is \"{}\": say \"{}\" or \"all\"", option, value,
                                fmt::join(names, "\", \"")));
}

std::string table(std::span<const Column> columns, const nlohmann::ordered_json& rows) {
  std::string out;
  for (const Column& column : columns) out += padded(column.title, column.width);
  out += '\n';
  for (const auto& row : rows) {
    for (const Column& column : columns) out += padded(cell(column, row), column.width);
    out += '\n';
  }
  return out;
}

void add_bench(CLI::App& app) {
  CLI::App* bench = app.add_subcommand("bench", "Measure parts beside the machine's own ceiling");
  bench->require_subcommand(1);
  add_bench_adam(*bench);
  add_bench_io(*bench);
  add_bench_layers(*bench);
  add_bench_step(*bench);
  add_bench_pipeline(*bench);
}

}  // namespace strata::tools
