// strata bench io: the I/O engine against fio and a bare liburing loop on the same file.
#include "tools/bench_io.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <random>
#include <vector>

#include "io/io_engine.h"
#include "strata/clock.h"
#include "strata/error.h"
#include "tools/bench.h"
#include "tools/command.h"

namespace strata::tools {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kDefaultBytes = 2048 * kMiB;
constexpr uint64_t kMostInFlight = 512 * kMiB;
constexpr double kTurnSeconds = 1;
constexpr double kSmokeTurnSeconds = 0.03;
constexpr int64_t kSmokeRounds = 2;
constexpr int64_t kFewestRounds = 3;

struct BenchIoOptions : BenchOptions {
  std::string path = ".";
  uint64_t bytes = 0;
  std::vector<uint64_t> block_bytes = {kMiB};
  uint32_t depth = 32;
  std::string op = "all";
  double seconds = 20;
  std::optional<int64_t> repeat;
};

// The options' meaning. Throws ConfigError where they have none.
struct Setting {
  explicit Setting(const BenchIoOptions& options);

  // Everybody has the same, so that caches do the same for everybody.
  uint64_t memory_bytes(uint64_t block) const { return depth * block; }

  std::string path;
  uint64_t bytes;                     // of the file
  std::vector<uint64_t> block_bytes;  // ascending
  uint32_t depth;
  std::vector<IoMix> mixes;
  double turn_seconds;
  double seconds;
  int64_t rounds;  // 0: as many as the seconds hold
};

constexpr std::array kMixes = {IoMix::read, IoMix::write, IoMix::mixed};

Setting::Setting(const BenchIoOptions& options)
    : path(options.path),
      bytes(options.bytes),
      block_bytes(options.block_bytes),
      depth(options.depth),
      mixes(chosen("--op", options.op, kMixes)),
      turn_seconds(options.smoke ? kSmokeTurnSeconds : kTurnSeconds),
      seconds(options.seconds),
      rounds(options.repeat.value_or(options.smoke ? kSmokeRounds : 0)) {
  std::sort(block_bytes.begin(), block_bytes.end());
  for (const uint64_t block : block_bytes) {
    if (block < 4096 || !std::has_single_bit(block) || block * depth > kMostInFlight) {
      throw ConfigError(fmt::format(
          "--block is {} and --depth {}: say a power of two of at least 4096 bytes, and "
          "together at most 512 MiB",
          block, depth));
    }
  }
  if (!std::filesystem::is_directory(path)) {
    throw ConfigError(fmt::format("--path '{}' is not a directory: name one", path));
  }
  if (bytes == 0) bytes = options.smoke ? 4 * block_bytes.back() : kDefaultBytes;
  // Mixed loads begin to write in the middle.
  const uint64_t unit = 2 * block_bytes.back();
  bytes = (bytes + unit - 1) / unit * unit;
}

// Strata's engine, asked for a block at a time.
class EngineLoop {
 public:
  EngineLoop(const io::BlockFile& file, const Setting& setting, uint64_t block_bytes,
             std::span<std::byte> memory, bool registers)
      : file_(file),
        memory_(memory.first(setting.memory_bytes(block_bytes))),
        engine_(io::make_uring_backend(setting.depth),
                {.block_bytes = static_cast<uint32_t>(block_bytes)}, traffic_),
        requests_(setting.depth),
        done_(requests_.size()) {
    if (registers) engine_.attach({.buffers = {memory_}, .files = {file.fd()}});
  }

  std::string name() const { return engine_.name(); }

  IoResult run(IoMix mix, double seconds) {
    const uint64_t block_bytes = memory_.size() / requests_.size();
    IoWalk walk(mix, file_.bytes(), block_bytes);
    const int64_t begin_ns = now_ns();
    const int64_t end_ns = begin_ns + static_cast<int64_t>(seconds * 1e9);
    for (size_t i = 0; i < requests_.size(); ++i) start(i, walk.next(), block_bytes);
    IoResult result;
    while (engine_.in_flight() > 0) {
      const size_t count = engine_.reap(done_, std::chrono::milliseconds(-1));
      const bool go_on = now_ns() < end_ns;
      for (size_t i = 0; i < count; ++i) {
        done_[i]->throw_if_failed();
        result.bytes += block_bytes;
        if (go_on)
          start(static_cast<size_t>(done_[i] - requests_.data()), walk.next(), block_bytes);
      }
    }
    result.seconds = seconds_since(begin_ns);
    return result;
  }

 private:
  void start(size_t index, IoWalk::Step step, uint64_t bytes) {
    io::IoRequest& request = requests_[index];
    request = {};
    request.op = step.write ? io::Op::write : io::Op::read;
    request.file = &file_;
    request.offset = step.offset;
    request.data = memory_.data() + index * bytes;
    request.bytes = bytes;
    engine_.submit(request);
  }

  const io::BlockFile& file_;
  const std::span<std::byte> memory_;
  NullTrafficSink traffic_;
  io::IoEngine engine_;
  std::vector<io::IoRequest> requests_;
  std::vector<io::IoRequest*> done_;
};

// Never-written blocks are slower than they will be, and empty memory may be compressed below.
void write_whole_file(const io::BlockFile& file, std::span<std::byte> memory) {
  std::mt19937_64 random(1);
  for (size_t at = 0; at < memory.size(); at += sizeof(uint64_t)) {
    const uint64_t word = random();
    std::memcpy(memory.data() + at, &word, sizeof(word));
  }
  NullTrafficSink traffic;
  io::IoEngine engine(io::make_uring_backend(8), {}, traffic);
  for (uint64_t at = 0; at < file.bytes(); at += memory.size()) {
    io::IoRequest request;
    request.op = io::Op::write;
    request.file = &file;
    request.offset = at;
    request.data = memory.data();
    request.bytes = std::min<uint64_t>(memory.size(), file.bytes() - at);
    engine.submit(request);
    std::array<io::IoRequest*, 1> done;
    while (engine.in_flight() > 0) engine.reap(done, std::chrono::milliseconds(-1));
    request.throw_if_failed();
  }
}

// One who moves blocks, and the seconds that a byte took, a value a turn.
struct Mover {
  std::string key;
  std::function<IoResult()> turn;
  Times seconds_per_byte;
};

void take_turns(std::vector<Mover>& movers, const Setting& setting, const IoLoad& load) {
  const int64_t begin_ns = now_ns();
  const auto go_on = [&](int64_t round) {
    if (setting.rounds > 0) return round < setting.rounds;
    return round < kFewestRounds || seconds_since(begin_ns) < setting.seconds;
  };
  for (int64_t round = 0; go_on(round); ++round) {
    std::string line =
        fmt::format("{} of {} KiB, round {}:", name(load.mix), load.block_bytes >> 10, round + 1);
    // Everybody begins a round in turn.
    for (size_t i = 0; i < movers.size(); ++i) {
      Mover& mover = movers[(i + static_cast<size_t>(round)) % movers.size()];
      const IoResult result = mover.turn();
      mover.seconds_per_byte.add(result.seconds / static_cast<double>(result.bytes));
      line += fmt::format(" {} {:.2f}", mover.key,
                          static_cast<double>(result.bytes) / result.seconds * 1e-9);
    }
    fmt::print(stderr, "{} GB/s\n", line);
  }
}

Json measured(const std::vector<Mover>& movers, const IoLoad& load) {
  Json row = {{"op", name(load.mix)},
              {"block_bytes", load.block_bytes},
              {"rounds", movers.front().seconds_per_byte.rounds()},
              {"gb_per_s", Json::object()},
              {"best_gb_per_s", Json::object()},
              {"of", Json::object()}};
  const Times& ours = movers.front().seconds_per_byte;
  for (const Mover& mover : movers) {
    row["gb_per_s"][mover.key] = 1e-9 / mover.seconds_per_byte.median_seconds();
    row["best_gb_per_s"][mover.key] = 1e-9 / mover.seconds_per_byte.best_seconds();
    if (&mover != &movers.front()) {
      row["of"][mover.key] = ours.speed_against(mover.seconds_per_byte);
    }
  }
  // fio, or the bare loop where there is none.
  row["ceiling"] = movers.back().key;
  row["ratio"] = row["of"][movers.back().key];
  return row;
}

class IoBench {
 public:
  explicit IoBench(const Setting& setting)
      : setting_(setting),
        memory_(static_cast<int64_t>(setting.memory_bytes(setting.block_bytes.back())), 1),
        file_(io::BlockFile::create_scratch(setting.path, setting.bytes, {}, log_)),
        fio_(Fio::find()) {
    fmt::print(stderr, "writing {} MiB in {}\n", setting.bytes >> 20, setting.path);
    write_whole_file(file_, memory());
  }

  Json run() {
    Json result = {
        {"bench", "io"},
        {"path", setting_.path},
        {"file_bytes", setting_.bytes},
        {"direct", file_.direct()},
        {"depth", setting_.depth},
        {"engine",
         EngineLoop(file_, setting_, setting_.block_bytes.front(), memory(), true).name()},
        {"fio", fio_ ? Json(fio_->version()) : Json()},
        {"cases", Json::array()}};
    for (const IoMix mix : setting_.mixes) {
      for (const uint64_t block : setting_.block_bytes) {
        result["cases"].push_back(run_case({mix, block, setting_.depth}));
      }
    }
    return result;
  }

 private:
  std::span<std::byte> memory() const {
    return {memory_.as<std::byte>(), setting_.memory_bytes(setting_.block_bytes.back())};
  }

  Json run_case(const IoLoad& load) {
    const double seconds = setting_.turn_seconds;
    EngineLoop ours(file_, setting_, load.block_bytes, memory(), true);
    EngineLoop plain(file_, setting_, load.block_bytes, memory(), false);
    LiburingLoop bare(file_, load.depth, memory().first(setting_.memory_bytes(load.block_bytes)));
    std::vector<Mover> movers;
    movers.push_back({"strata", [&] { return ours.run(load.mix, seconds); }, {}});
    movers.push_back({"unregistered", [&] { return plain.run(load.mix, seconds); }, {}});
    movers.push_back({"liburing", [&] { return bare.run(load, seconds); }, {}});
    if (fio_) movers.push_back({"fio", [&] { return fio_->run(file_, load, seconds); }, {}});
    take_turns(movers, setting_, load);
    return measured(movers, load);
  }

  const Setting& setting_;
  NullLogSink log_;
  const BenchMemory memory_;
  const io::BlockFile file_;
  std::optional<Fio> fio_;
};

void print_text(const Json& result) {
  fmt::print("{}, {} MiB in {}, depth {}; {}; GB/s, medians\n\n",
             result.at("engine").get<std::string>(), result.at("file_bytes").get<uint64_t>() >> 20,
             result.at("path").get<std::string>(), result.at("depth").get<int>(),
             result.at("direct").get<bool>() ? "O_DIRECT" : "through the page cache");
  const std::vector<Column> columns = {{"op", "", -7},
                                       {"block", "block KiB", 10, "{:.0f}"},
                                       {"rounds", "rounds", 8, "{:.0f}"},
                                       {"strata", "strata", 9, "{:.2f}"},
                                       {"unregistered", "unregistered", 14, "{:.2f}"},
                                       {"liburing", "liburing", 10, "{:.2f}"},
                                       {"fio", "fio", 8, "{:.2f}"},
                                       {"of_liburing", "of liburing", 13, "{:.3f}"},
                                       {"of_fio", "of fio", 9, "{:.3f}"}};
  Json rows = Json::array();
  for (const Json& one : result.at("cases")) {
    Json row = one.at("gb_per_s");
    row.update({{"op", one.at("op")},
                {"block", one.at("block_bytes").get<uint64_t>() >> 10},
                {"rounds", one.at("rounds")},
                {"of_liburing", one.at("of").at("liburing")}});
    const bool fio = one.at("ceiling") == "fio";
    if (!fio) row["fio"] = "-";
    row["of_fio"] = fio ? one.at("ratio") : Json("-");
    rows.push_back(row);
  }
  fmt::print("{}", table(columns, rows));
}

Json bench_io(const BenchIoOptions& options) {
  const Setting setting(options);
  require_memory(setting.memory_bytes(setting.block_bytes.back()));
  return IoBench(setting).run();
}

}  // namespace

void add_bench_io(CLI::App& bench) {
  auto options = std::make_shared<BenchIoOptions>();
  CLI::App* command = bench.add_subcommand("io", "The I/O engine against fio on the same file");
  command->add_option("--path", options->path, "Directory of the file; this one if not given");
  command->add_option("--size", options->bytes, "Size of the file; 2GiB if not given")
      ->transform(CLI::AsSizeValue(false));
  command
      ->add_option("--block", options->block_bytes,
                   "Bytes of one transfer, or several sizes; 1MiB if not given")
      ->transform(CLI::AsSizeValue(false));
  command->add_option("--depth", options->depth, "Transfers under way; 32 if not given")
      ->check(CLI::Range(1, 4096));
  command->add_option("--op", options->op, "read, write, mixed, or all of them: all (the default)");
  command->add_option("--seconds", options->seconds, "Repeat a case this long; 20 if not given")
      ->check(CLI::PositiveNumber);
  command->add_option("--repeat", options->repeat, "Rounds of a case instead")
      ->check(CLI::PositiveNumber);
  command->footer(
      "In a round each takes a turn of a second on the same file: the engine with registered "
      "memory\n"
      "and files, the engine without, a bare liburing loop, and fio where it is installed. Ratios\n"
      "are the medians of the rounds'. Rounds are told on standard error.\n"
      "Example: strata bench io --path /mnt/nvme --size 8GiB --block 1MiB 4MiB");
  run_bench(*command, options, bench_io, print_text);
}

}  // namespace strata::tools
