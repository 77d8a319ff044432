#include "engine/runtime/watchdog.h"

#include <fmt/format.h>
#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "strata/clock.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

constexpr double kMostGrace_s = 30;
constexpr double kLooks = 8;  // within a timeout
constexpr double kShortestPeriod_s = 1e-3, kLongestPeriod_s = 5;
// Of the time, for a thread to count as computing: what it takes to go from one slow system call to
// the next. In one call, or asleep, it is nothing.
constexpr double kComputingShare = 1e-5;
// To flush much to a slow disk is one system call, and is given so many timeouts: a transfer of the
// pump, or a caller who saves a checkpoint.
constexpr int kTimeoutsOfFlush = 4;

bool computes(int64_t cpu_ns, double passed_s) {
  return static_cast<double>(cpu_ns) * 1e-9 > kComputingShare * passed_s;
}

std::string name_of(const TrafficTag& work) {
  if (*work.label == '\0') return "work without a name";
  return work.index < 0 ? fmt::format("'{}'", work.label)
                        : fmt::format("'{} {}'", work.label, work.index);
}

std::string text_of(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace

Watchdog::Watchdog(double timeout_s, LogSink& log, Stuck stuck)
    : timeout_s_(timeout_s),
      grace_s_(std::min(timeout_s, kMostGrace_s)),
      period_(static_cast<int64_t>(
          1e9 * std::clamp(timeout_s / kLooks, kShortestPeriod_s, kLongestPeriod_s))),
      log_(log),
      stuck_(std::move(stuck)),
      thread_([this] { run(); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stopping_changed_.notify_all();
  thread_.join();
}

void Watchdog::watch(Queue& queue, Role role) {
  throw_if_ended();
  const std::lock_guard lock(mutex_);
  queues_.push_back({&queue, role});
}

void Watchdog::watch(offload::Pump& pump) {
  throw_if_ended();
  const std::lock_guard lock(mutex_);
  pump_ = &pump;
}

void Watchdog::on_end(End end) {
  throw_if_ended();
  const std::lock_guard lock(mutex_);
  ends_.push_back(std::move(end));
}

void Watchdog::forget() {
  const std::lock_guard lock(mutex_);
  queues_.clear();
  pump_ = nullptr;
  ends_.clear();
}

void Watchdog::throw_if_ended() {
  if (ended_.load(std::memory_order_acquire)) std::rethrow_exception(failure_);
}

void Watchdog::enter(const char* name) {
  clockid_t clock = CLOCK_THREAD_CPUTIME_ID;
  pthread_getcpuclockid(pthread_self(), &clock);
  caller_clock_.store(clock);
  calls_.fetch_add(1);
  call_.store(name);
}

void Watchdog::run() {
  std::unique_lock lock(mutex_);
  for (int64_t before_ns = now_ns();;) {
    stopping_changed_.wait_for(lock, period_, [this] { return stopping_; });
    if (stopping_) return;
    // Where the process was stopped, by Ctrl-Z or a debugger, nobody stood still meanwhile.
    const int64_t at_ns = now_ns();
    const int64_t passed_ns = std::min<int64_t>(at_ns - before_ns, 2 * period_.count());
    before_ns = at_ns;
    const double passed_s = static_cast<double>(passed_ns) * 1e-9;
    if (failure_ == nullptr) {
      look(passed_s);
    } else {
      tell_if_stuck(lock, passed_s);
    }
  }
}

// With mutex_ held, as all that follows.
void Watchdog::look(double passed_s) {
  bool at_rest = look_at_pump(passed_s);
  for (Watched& watched : queues_) at_rest &= look_at_queue(watched, passed_s);
  look_at_call(at_rest, passed_s);
}

// Whether nothing is under way, or was since the last look. A pump whose thread is blocked in the
// system tells of the same oldest transfer again.
bool Watchdog::look_at_pump(double passed_s) {
  if (pump_ == nullptr) return true;
  const offload::Pump::Standing now = pump_->standing();
  const offload::Pump::Standing before = std::exchange(last_pump_, now);
  const bool moved = now.transfers_done != before.transfers_done;
  const bool stands =
      now.under_way > 0 && now.oldest == before.oldest && (now.oldest > 0 || !moved);
  pump_still_s_ = stands ? pump_still_s_ + passed_s : 0;
  const double limit_s = now.oldest_flushes ? kTimeoutsOfFlush * timeout_s_ : timeout_s_;
  if (pump_still_s_ >= limit_s) end(overdue());
  return now.under_way == 0 && !moved;
}

std::exception_ptr Watchdog::overdue() {
  const auto patience =
      std::chrono::milliseconds(static_cast<int64_t>(std::max(1.0, 1e3 * grace_s_)));
  if (std::exception_ptr named = pump_->overdue(pump_still_s_, patience)) return named;
  return std::make_exception_ptr(
      IoError(fmt::format("no transfer has ended for {:.3g} s, and the I/O thread does not come "
                          "back from the system: {} requests are under way to a disk that does not "
                          "answer",
                          pump_still_s_, pump_->standing().under_way),
              "", 0, ETIMEDOUT));
}

// Whether nothing is under way.
bool Watchdog::look_at_queue(Watched& watched, double passed_s) {
  const QueueStanding now = watched.queue->standing();
  const QueueStanding before = std::exchange(watched.last, now);
  const bool same = now.under_way && !now.waits && now.ended == before.ended;
  const bool computed = computes(now.cpu_ns - before.cpu_ns, passed_s);
  watched.still_s = same && !computed ? watched.still_s + passed_s : 0;
  watched.computing_s = same ? watched.computing_s + passed_s : 0;
  if (watched.role == Role::works) {
    if (watched.still_s >= timeout_s_) {
      end(std::make_exception_ptr(
          DeviceError(fmt::format("queue '{}' has stood still for {:.3g} s in {}",
                                  watched.queue->name(), watched.still_s, name_of(now.work)))));
    } else if (watched.computing_s >= timeout_s_) {
      log_.log(LogLevel::warning,
               fmt::format("queue '{}' has been in {} for another {:.3g} s, and computes",
                           watched.queue->name(), name_of(now.work), watched.computing_s));
      watched.computing_s = 0;
    }
  }
  return !now.under_way;
}

void Watchdog::look_at_call(bool at_rest, double passed_s) {
  const char* const name = call_.load();
  timespec cpu = {};
  clock_gettime(caller_clock_.load(), &cpu);
  const int64_t cpu_ns = cpu.tv_sec * 1'000'000'000 + cpu.tv_nsec;
  const bool computed = computes(cpu_ns - std::exchange(caller_cpu_ns_, cpu_ns), passed_s);
  if (!in_same_call() || !at_rest || computed) {
    call_still_s_ = 0;
    call_warnings_ = 0;
    return;
  }
  call_still_s_ += passed_s;
  if (call_still_s_ < (call_warnings_ + 1) * timeout_s_) return;
  const std::string what = fmt::format(
      "{} has stood still for {:.3g} s with nothing under way on a queue or to the "
      "state on nvme: a file system does not answer",
      name, call_still_s_);
  if (++call_warnings_ < kTimeoutsOfFlush) {
    log_.log(LogLevel::warning, what);
  } else {
    end(std::make_exception_ptr(Error(what)));
  }
}

// As at the last look.
bool Watchdog::in_same_call() {
  const uint64_t call = calls_.load();
  return std::exchange(last_call_, call) == call && call_.load() != nullptr;
}

void Watchdog::end(std::exception_ptr failure) {
  if (failure_ != nullptr) return;
  failure_ = std::move(failure);
  reason_ = text_of(failure_);
  ended_.store(true, std::memory_order_release);
  log_.log(LogLevel::warning, fmt::format("the watchdog ends the run: {}", reason_));
  for (const End& end : ends_) end(failure_, reason_);
  if (pump_ != nullptr) pump_->abandon(failure_);
  for (const Watched& watched : queues_) {
    if (watched.role != Role::trades) watched.queue->abandon(failure_);
  }
}

// The run has been ended.
void Watchdog::tell_if_stuck(std::unique_lock<std::mutex>& lock, double passed_s) {
  const char* const name = call_.load();
  in_call_s_ = in_same_call() ? in_call_s_ + passed_s : 0;
  if (told_ || name == nullptr || in_call_s_ < grace_s_) return;
  told_ = true;
  const std::string what =
      fmt::format("{}; the run was ended for it, and {:.3g} s later {} has not returned", reason_,
                  in_call_s_, name);
  lock.unlock();
  if (stuck_ != nullptr) {
    stuck_(what);
  } else {
    log_.log(LogLevel::warning, what);
  }
  lock.lock();
}

}  // namespace strata::engine
