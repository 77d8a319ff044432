// A main for fuzz targets where libFuzzer is not: takes its arguments, runs every file of the
// directories given, and then mutations of them, the same ones for the same seed.
//
//   fuzz_NAME [-runs=N] [-seed=N] DIRECTORY ...
//
// An input that ends the program is left in the working directory as crash-NAME.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

namespace fs = std::filesystem;

constexpr size_t kMostBytes = 1 << 16;
constexpr unsigned kMostSeconds = 20;  // of one input

std::string input;  // the one under way
std::string crash_path;

// Only what a signal handler may do.
extern "C" void keep_input(int signal_number) {
  const int file = ::open(crash_path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644);
  if (file >= 0 && ::write(file, input.data(), input.size()) >= 0) {
    constexpr std::string_view kSaid = "the input is kept as crash-*\n";
    (void)!::write(STDERR_FILENO, kSaid.data(), kSaid.size());
  }
  std::signal(signal_number, SIG_DFL);
  std::raise(signal_number);
}

// On a stack of its own, since an overflow of the stack is a finding too.
void watch_for_crashes() {
  static std::array<char, 1 << 16> stack;
  stack_t own = {};
  own.ss_sp = stack.data();
  own.ss_size = stack.size();
  ::sigaltstack(&own, nullptr);
  struct sigaction action = {};
  action.sa_handler = keep_input;
  action.sa_flags = SA_ONSTACK;
  for (const int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGALRM}) {
    ::sigaction(number, &action, nullptr);
  }
}

void run() {
  ::alarm(kMostSeconds);
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

class Mutator {
 public:
  Mutator(std::vector<std::string> corpus, uint64_t seed)
      : corpus_(std::move(corpus)), random_(seed) {}

  std::string next() {
    std::string bytes = some_file();
    for (size_t changes = 1 + below(6); changes > 0; --changes) change(bytes);
    if (bytes.size() > kMostBytes) bytes.resize(kMostBytes);
    return bytes;
  }

 private:
  size_t below(size_t n) { return n == 0 ? 0 : random_() % n; }
  const std::string& some_file() { return corpus_[below(corpus_.size())]; }

  void change(std::string& bytes) {
    const size_t at = below(bytes.size() + 1);
    const size_t some = below(std::min<size_t>(bytes.size() - at, 64) + 1);
    switch (below(8)) {
      case 0:
        flip_bit(bytes);
        break;
      case 1:
        bytes.erase(at, some);
        break;
      case 2:
        bytes.insert(at, bytes.substr(below(bytes.size() + 1), some));
        break;
      case 3:
        bytes.replace(at, some, kWords[below(kWords.size())]);
        break;
      case 4:
        bytes.insert(at, kWords[below(kWords.size())]);
        break;
      case 5:
        splice(bytes, at);
        break;
      case 6:
        repeat(bytes, at);
        break;
      default:
        bytes.insert(at, 1, static_cast<char>(below(256)));
        break;
    }
  }
  void flip_bit(std::string& bytes) {
    if (!bytes.empty()) bytes[below(bytes.size())] ^= static_cast<char>(1 << below(8));
  }
  void splice(std::string& bytes, size_t at) {
    const std::string& other = some_file();
    bytes.insert(at, other.substr(below(other.size() + 1), below(64)));
  }
  // Deep nesting, long names and long numbers.
  void repeat(std::string& bytes, size_t at) {
    const std::string_view word = kWords[below(kWords.size())];
    std::string many;
    for (size_t times = size_t{1} << below(15); times > 0 && many.size() < kMostBytes; --times) {
      many += word;
    }
    bytes.insert(at, many);
  }

  static constexpr std::array<std::string_view, 28> kWords = {"[",
                                                              "]",
                                                              "{",
                                                              "}",
                                                              "\"",
                                                              ",",
                                                              ":",
                                                              "{\"a\":",
                                                              "[[",
                                                              "null",
                                                              "true",
                                                              "false",
                                                              "0",
                                                              "-1",
                                                              "1e999",
                                                              "1e-99",
                                                              "\\u0000",
                                                              "\xff",
                                                              "//",
                                                              "/*",
                                                              "9",
                                                              "0.5",
                                                              "\"auto\"",
                                                              "\"1GiB\"",
                                                              "\n",
                                                              "4294967296",
                                                              "9223372036854775807",
                                                              "18446744073709551616"};

  const std::vector<std::string> corpus_;
  std::mt19937_64 random_;
};

std::vector<std::string> read_corpus(const std::vector<std::string>& directories) {
  std::vector<fs::path> paths;
  for (const std::string& directory : directories) {
    for (const auto& entry : fs::directory_iterator(directory)) {
      if (entry.is_regular_file()) paths.push_back(entry.path());
    }
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> corpus;
  for (const fs::path& path : paths) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return corpus;
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t runs = 0, seed = 1;
  std::vector<std::string> directories;
  for (const std::string_view argument : std::vector<std::string_view>(argv + 1, argv + argc)) {
    constexpr std::string_view kRuns = "-runs=", kSeed = "-seed=";
    if (argument.starts_with(kRuns)) {
      runs = std::stoull(std::string(argument.substr(kRuns.size())));
    } else if (argument.starts_with(kSeed)) {
      seed = std::stoull(std::string(argument.substr(kSeed.size())));
    } else {
      directories.emplace_back(argument);
    }
  }
  const std::vector<std::string> corpus = read_corpus(directories);
  if (corpus.empty()) {
    std::fprintf(stderr, "no file in the directories given: name the target's corpus\n");
    return 2;
  }
  crash_path = "crash-" + fs::path(argv[0]).filename().string();
  watch_for_crashes();
  for (const std::string& file : corpus) {
    input = file;
    run();
  }
  Mutator mutator(corpus, seed);
  for (uint64_t i = 0; i < runs; ++i) {
    input = mutator.next();
    run();
  }
  std::printf("%zu files and %llu mutations of them\n", corpus.size(),
              static_cast<unsigned long long>(runs));
  return 0;
}
