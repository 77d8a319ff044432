// Ends a run that stands still, and says what it waits for.
//
// A thread of its own looks several times within the timeout at everything that may stand still.
// The run is ended when for the whole timeout
//
//   * the same transfer of the pump was the oldest under way: IoError names it; a flush, in which a
//     file system may have much to write, has four timeouts,
//   * or a queue was in one operation, no wait for an event, and its thread did not compute:
//     DeviceError names the queue and its work,
//   * or, for four timeouts, the caller was inside the engine, its thread did not compute, no queue
//     and no request was under way and no transfer ended: Error names the call, in which a file
//     system does not answer. Each timeout before the last is a warning.
//
// What computes is alive, however long it takes; a warning tells of it once a timeout. A GPU does
// not say whether it computes: there one operation longer than the timeout ends the run. Waits for
// other ranks have a timeout of their own (CommunicatorOptions), and the rank that does not come is
// watched by its own watchdog.
//
// To end a run is to tell the other ranks, and to make everybody here who waits throw. What still
// uses memory is waited for by destructors; whoever cannot be woken there, or is blocked in the
// system, is told of once more after a grace.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kernels/device/device.h"
#include "offload/pump.h"
#include "strata/log.h"

namespace strata::engine {

class Watchdog {
 public:
  // Called once, on the watchdog's thread, when a call has not returned by the end of the grace.
  // Empty: `log` is told.
  using Stuck = std::function<void(const std::string& what)>;
  // `log` must outlive the watchdog.
  Watchdog(double timeout_s, LogSink& log, Stuck stuck);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // What a queue does, and so who knows when it is stuck.
  enum class Role : uint8_t {
    works,
    waits,   // for work that is watched itself
    trades,  // with other ranks; it ends when they are told
  };
  // All throw why the run was ended, if it was. What is watched stays until forget().
  void watch(Queue& queue, Role role);
  void watch(offload::Pump& pump);
  // What else has to be done to end the run. `reason` is the failure's text.
  using End = std::function<void(const std::exception_ptr& failure, std::string_view reason)>;
  void on_end(End end);
  // Looks at nothing any more.
  void forget();

  void throw_if_ended();

  // The caller's time inside the engine. One at a time; `watchdog` may be null.
  class Call {
   public:
    Call(Watchdog* watchdog, const char* name) : watchdog_(watchdog) {
      if (watchdog_ != nullptr) watchdog_->enter(name);
    }
    ~Call() {
      if (watchdog_ != nullptr) watchdog_->call_.store(nullptr);
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    Watchdog* const watchdog_;
  };

 private:
  struct Watched {
    Queue* queue = nullptr;
    Role role = Role::works;
    QueueStanding last = {};
    double still_s = 0;      // in one operation, without computing
    double computing_s = 0;  // in one operation, since it was told of
  };

  void enter(const char* name);
  void run();
  void look(double passed_s);
  bool look_at_pump(double passed_s);
  bool look_at_queue(Watched& watched, double passed_s);
  void look_at_call(bool at_rest, double passed_s);
  bool in_same_call();
  std::exception_ptr overdue();
  void end(std::exception_ptr failure);
  void tell_if_stuck(std::unique_lock<std::mutex>& lock, double passed_s);

  // Constant after construction.
  const double timeout_s_;
  const double grace_s_;
  const std::chrono::nanoseconds period_;  // between two looks
  LogSink& log_;
  const Stuck stuck_;

  // The caller's.
  std::atomic<const char*> call_ = nullptr;  // inside the engine: what it called
  std::atomic<uint64_t> calls_ = 0;
  std::atomic<clockid_t> caller_clock_ = CLOCK_THREAD_CPUTIME_ID;

  std::mutex mutex_;  // protects what follows
  std::condition_variable stopping_changed_;
  std::vector<Watched> queues_;
  offload::Pump* pump_ = nullptr;
  offload::Pump::Standing last_pump_ = {};
  double pump_still_s_ = 0;
  uint64_t last_call_ = 0;
  int64_t caller_cpu_ns_ = 0;
  double call_still_s_ = 0;  // in one call, with nothing under way, without computing
  int call_warnings_ = 0;    // of that
  double in_call_s_ = 0;     // in one call, since the run was ended
  std::vector<End> ends_;
  std::exception_ptr failure_;
  std::string reason_;
  std::atomic<bool> ended_ = false;  // failure_ is set
  bool told_ = false;
  bool stopping_ = false;

  std::thread thread_;
};

}  // namespace strata::engine
