#include "tools/work_progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "strata/clock.h"

namespace strata::tools {
namespace {

constexpr int64_t kLineEveryNs = 5'000'000'000;
constexpr int64_t kRedrawEveryNs = 200'000'000;

}  // namespace

WorkProgress::WorkProgress(std::string done, uint64_t bytes)
    : done_(std::move(done)),
      bytes_(bytes),
      in_place_(isatty(STDERR_FILENO) != 0),
      last_shown_ns_(now_ns()) {}

WorkProgress::~WorkProgress() {
  if (open_) std::fputs("\r\033[K", stderr);
}

void WorkProgress::add(uint64_t bytes) {
  done_bytes_ += bytes;
  const int64_t now = now_ns();
  if (now - last_shown_ns_ < (in_place_ ? kRedrawEveryNs : kLineEveryNs)) return;
  last_shown_ns_ = now;
  open_ = in_place_;
  fmt::print(stderr, "{}{} {} of {} MiB{}", in_place_ ? "\r\033[K" : "", done_, done_bytes_ >> 20,
             bytes_ >> 20, in_place_ ? "" : "\n");
  std::fflush(stderr);
}

}  // namespace strata::tools
