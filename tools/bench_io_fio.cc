// fio as a ceiling: the same file, blocks, depth and kind of I/O, by a program that others trust.
#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <system_error>
#include <vector>

#include "strata/error.h"
#include "tools/bench_io.h"

extern char** environ;

namespace strata::tools {
namespace {

std::vector<char*> pointers_to(const std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// fio's buffers come from malloc, in small pages unless told. Ours are huge, and that is worth a
// factor: a virtual disk cuts a mebibyte of scattered small pages in two.
std::vector<std::string> environment_with_huge_pages() {
  std::vector<std::string> environment = {"GLIBC_TUNABLES=glibc.malloc.hugetlb=1"};
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!std::string_view(*variable).starts_with("GLIBC_TUNABLES=")) {
      environment.emplace_back(*variable);
    }
  }
  return environment;
}

// What a program printed, with its complaints left out; nothing where it is not there or fails.
std::optional<std::string> output_of(const std::vector<std::string>& command) {
  std::array<int, 2> pipe_ends = {};
  if (::pipe2(pipe_ends.data(), O_CLOEXEC) != 0) {
    throw std::system_error(errno, std::generic_category(), "cannot make a pipe");
  }
  std::vector<char*> arguments = pointers_to(command);
  const std::vector<std::string> environment = environment_with_huge_pages();
  std::vector<char*> variables = pointers_to(environment);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child = -1;
  const int error =
      ::posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), variables.data());
  posix_spawn_file_actions_destroy(&actions);
  ::close(pipe_ends[1]);
  std::string text;
  std::array<char, 4096> buffer;
  for (ssize_t bytes = 1; error == 0 && bytes != 0;) {
    bytes = ::read(pipe_ends[0], buffer.data(), buffer.size());
    if (bytes > 0) text.append(buffer.data(), static_cast<size_t>(bytes));
    if (bytes < 0 && errno != EINTR) break;
  }
  ::close(pipe_ends[0]);
  if (error != 0) return std::nullopt;
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return std::nullopt;
  return text;
}

// The options cost it the least work of its own. The file has no name, but this process has it
// open.
std::vector<std::string> command_for(const io::BlockFile& file, const IoLoad& load, double seconds,
                                     bool registers) {
  const std::string_view rw = load.mix == IoMix::mixed ? "rw" : name(load.mix);
  std::vector<std::string> command = {
      "fio",
      "--name=ceiling",
      "--output-format=json",
      "--ioengine=io_uring",
      "--thread",
      "--time_based",
      "--gtod_reduce=1",
      "--scramble_buffers=0",
      "--allow_file_create=0",
      fmt::format("--direct={}", file.direct() ? 1 : 0),
      fmt::format("--rw={}", rw),
      fmt::format("--bs={}", load.block_bytes),
      fmt::format("--iodepth={}", load.depth),
      fmt::format("--size={}", file.bytes()),
      fmt::format("--runtime={:.0f}ms", seconds * 1e3),
      fmt::format("--filename=/proc/{}/fd/{}", ::getpid(), file.fd())};
  if (registers) command.insert(command.end(), {"--fixedbufs", "--registerfiles"});
  return command;
}

}  // namespace

std::optional<Fio> Fio::find() {
  std::optional<std::string> version = output_of({"fio", "--version"});
  if (!version) return std::nullopt;
  while (!version->empty() && version->back() == '\n') version->pop_back();
  return Fio(*version);
}

IoResult Fio::run(const io::BlockFile& file, const IoLoad& load, double seconds) {
  std::optional<std::string> output = output_of(command_for(file, load, seconds, registers_));
  if (!output && registers_) {
    registers_ = false;
    output = output_of(command_for(file, load, seconds, registers_));
  }
  if (!output) {
    throw Error(fmt::format("fio fails where the bench needs it: run it by hand to see why: {}",
                            fmt::join(command_for(file, load, seconds, registers_), " ")));
  }
  // Warnings may stand before the report.
  const auto report =
      nlohmann::json::parse(output->substr(std::min(output->find('{'), output->size())));
  const auto& job = report.at("jobs").at(0);
  IoResult result;
  for (const char* direction : {"read", "write"}) {
    const auto& part = job.at(direction);
    result.bytes += part.at("io_bytes").get<uint64_t>();
    result.seconds = std::max(result.seconds, part.at("runtime").get<double>() * 1e-3);
  }
  return result;
}

}  // namespace strata::tools
