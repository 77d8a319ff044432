// P6: a run that stands still ends with the name of what it waits for; one that is slow does not.
#include "engine/runtime/watchdog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "io/block_file.h"
#include "io/io_engine.h"
#include "offload/pump.h"
#include "strata/clock.h"
#include "strata/error.h"
#include "tests/engine/planted_ops.h"
#include "tests/engine/resumed_run.h"
#include "tests/engine/tiny_run.h"

namespace strata {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::Each;
using testing::HasSubstr;
using testing::MatchesRegex;
using testing_support::Life;
using testing_support::LifeOutcome;
using testing_support::TemporaryDirectory;
using testing_support::tiny_batches;
using testing_support::tiny_config;
using testing_support::tiny_gpt2;
using testing_support::views;

constexpr double kTimeout_s = 0.8;

class Lines final : public LogSink {
 public:
  void log(LogLevel, std::string_view message) override {
    const std::lock_guard lock(mutex_);
    lines_.emplace_back(message);
  }
  std::vector<std::string> lines() {
    const std::lock_guard lock(mutex_);
    return lines_;
  }

 private:
  std::mutex mutex_;
  std::vector<std::string> lines_;  // protected by mutex_
};

// A disk that answers again when the run has been told that nothing comes back: what is late then
// still finds its memory.
class WatchdogTest : public testing::Test {
 protected:
  WatchdogTest() {
    config_.nvme_paths = {directory_.path()};
    config_.optimizer_state.fill({0, 0, 1});
    config_.sub_group_numel = 8 * kGrainNumel;
    config_.watchdog_s = kTimeout_s;
    options_.micro_batch = {config_.micro_batch, tiny_gpt2().n_positions};
    options_.log = &log_;
    options_.stuck = [this](const std::string& what) {
      told_ = what;
      released_ = true;
      released_.notify_all();
    };
  }

  io::FaultPlan hanging(io::Op op, int64_t at) const {
    return {.hang = io::Hang{op, at, &released_}};
  }
  // Until an error is thrown, of which the second try gets the same.
  template <typename Thrown>
  void train_until(const std::function<void(const Thrown&)>& thrown) {
    const auto batches = tiny_batches(config_.accumulation_steps, 5);
    Engine engine =
        EngineTestAccess::make(models::gpt2(tiny_gpt2()), config_, options_, disturbance_);
    for (int again = 0; again < 2; ++again) {
      try {
        for (int step = 0; step < 4; ++step) engine.train_step(views(batches));
        ADD_FAILURE() << "nothing was thrown";
      } catch (const Thrown& error) {
        thrown(error);
      }
    }
  }

  const TemporaryDirectory directory_;
  Config config_ = tiny_config();
  Engine::Options options_;
  engine::Disturbance disturbance_;
  Lines log_;
  std::atomic<bool> released_ = false;
  std::string told_;  // by Options::stuck
};

TEST_F(WatchdogTest, NamesTheReadThatDoesNotComeBack) {
  disturbance_.io = hanging(io::Op::read, 30);
  train_until<IoError>([&](const IoError& error) {
    EXPECT_THAT(error.path, HasSubstr(directory_.path()));
    EXPECT_EQ(error.error_number, ETIMEDOUT);
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("the disk does not answer the read of "), HasSubstr(error.path),
                      HasSubstr(" at offset " + std::to_string(error.offset) + " of"),
                      HasSubstr("(read for update, master ")));
  });
  EXPECT_THAT(log_.lines(), Contains(HasSubstr("the watchdog ends the run: for ")));
  EXPECT_THAT(told_, HasSubstr("the engine's end has not returned"));
}

TEST_F(WatchdogTest, NamesTheWriteThatDoesNotComeBack) {
  disturbance_.io = hanging(io::Op::write, 60);
  train_until<IoError>([&](const IoError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("the disk does not answer the write of "),
                                    HasSubstr("(write after update, master ")));
  });
}

TEST_F(WatchdogTest, EndsAStartThatStandsStill) {
  disturbance_.io = hanging(io::Op::write, 1);
  EXPECT_THROW(EngineTestAccess::make(models::gpt2(tiny_gpt2()), config_, options_, disturbance_),
               IoError);
  EXPECT_THAT(told_, HasSubstr("the engine's start has not returned"));
}

// Other transfers than the optimizer's: by file queues, which wait for the pump.
TEST_F(WatchdogTest, NamesWhatAGatherWaitsFor) {
  config_.param = {0, 0, 1};
  disturbance_.io = hanging(io::Op::read, 20);
  config_.optimizer_state.fill({0, 1, 0});
  train_until<IoError>(
      [&](const IoError& error) { EXPECT_THAT(error.what(), HasSubstr("(read ahead, param ")); });
}

// On the host a queue's thread shows whether it computes.
class StuckQueueTest : public WatchdogTest {
 protected:
  void compute(std::function<void()> action) {
    probe_.begin({}, testing_support::Interlude{"gelu_forward.out", 0, std::move(action)});
    disturbance_.wrap_ops = [this](auto ops) { return plant_errors(std::move(ops), probe_); };
  }
  testing_support::OpProbe probe_;
};

TEST_F(StuckQueueTest, NamesTheQueueAndItsWork) {
  compute([this] { released_.wait(false); });
  train_until<DeviceError>([](const DeviceError& error) {
    EXPECT_THAT(error.what(), MatchesRegex("queue 'compute' has stood still for .* s in "
                                           "'forward 1'"));
  });
  EXPECT_THAT(told_, HasSubstr("the engine's end has not returned"));
}

TEST_F(StuckQueueTest, WhatComputesIsNotEnded) {
  compute([] {
    const int64_t end_ns = now_ns() + static_cast<int64_t>(4e9 * kTimeout_s);
    while (now_ns() < end_ns) {
    }
  });
  const auto batches = tiny_batches(config_.accumulation_steps, 5);
  Engine engine =
      EngineTestAccess::make(models::gpt2(tiny_gpt2()), config_, options_, disturbance_);
  engine.train_step(views(batches));
  engine.settle();
  EXPECT_THAT(log_.lines(),
              Contains(HasSubstr("queue 'compute' has been in 'forward 1' for another")));
  EXPECT_EQ(told_, "");
}

// Each transfer takes up to a tenth of the timeout, all together many times as long.
TEST_F(WatchdogTest, AnySlowDiskIsWaitedFor) {
  const std::string digest = testing_support::run_tiny(config_, 2).digest;
  config_.io_queue_depth = 1;
  config_.watchdog_s = 1;
  disturbance_.delay_seed = 3;
  disturbance_.io = io::FaultPlan{.seed = 3, .delay_permille = 1000, .max_delay_us = 100'000};
  const int64_t begin_ns = now_ns();
  EXPECT_EQ(testing_support::run_tiny(config_, 2, disturbance_).digest, digest);
  EXPECT_GT(static_cast<double>(now_ns() - begin_ns) * 1e-9, 4 * config_.watchdog_s);
}

Life stuck_life(const Config& config, const std::string& run, const io::FaultPlan& faults,
                const std::function<void(const std::string&)>& stuck) {
  Life life;
  life.config = config;
  life.config.watchdog_s = kTimeout_s;
  life.disturbance.io = faults;
  life.stuck = stuck;
  life.run_directory = run;
  life.until_step = 6;
  return life;
}

TEST_F(WatchdogTest, OtherRanksAreTold) {
  Life life = stuck_life(config_, "", hanging(io::Op::read, 30), options_.stuck);
  life.ranks = 2;
  life.config.comm_timeout_s = 60;
  life.disturbed_rank = 1;
  const LifeOutcome outcome = live(life);
  EXPECT_THAT(outcome.failures[0], HasSubstr("rank 1 failed: for "));
  EXPECT_THAT(outcome.failures[1], HasSubstr("the disk does not answer the read of "));
}

TEST_F(WatchdogTest, ARunThatWasEndedGoesOnWithTheBitsOfOneThatWasNot) {
  const Config config = testing_support::recoverable_config(directory_.path());
  Life whole = stuck_life(config, directory_.path() + "/whole", {}, {});
  const LifeOutcome uninterrupted = live(whole);
  ASSERT_THAT(uninterrupted.failures, Each(""));
  for (const int64_t at : {130, 150, 170}) {
    SCOPED_TRACE(at);
    released_ = false;
    const std::string run = directory_.path() + "/run" + std::to_string(at);
    const LifeOutcome ended =
        live(stuck_life(config, run, hanging(io::Op::write, at), options_.stuck));
    ASSERT_THAT(ended.failures.front(), HasSubstr("the disk does not answer the write of "));
    Life second = stuck_life(config, "", {}, {});
    second.resume = run;
    const LifeOutcome resumed = live(second);
    ASSERT_THAT(resumed.failures, Each(""));
    EXPECT_GT(resumed.first_step, 0);
    EXPECT_LT(resumed.first_step, 6);
    EXPECT_EQ(resumed.digest, uninterrupted.digest);
  }
}

// In the initial writes, under forward, in the update, while a step becomes durable, at the end; by
// the pipeline, file queues and the driver.
TEST_F(WatchdogTest, EndsWhereverATransferHangs) {
  Config everything = testing_support::recoverable_config(directory_.path());
  everything.param = everything.grad = everything.activation = {0, 0, 1};
  std::set<std::string> met;  // op and purpose
  int64_t at = 0;
  for (const Config& config :
       {testing_support::recoverable_config(directory_.path()), everything}) {
    for (const io::Op op : {io::Op::read, io::Op::write, io::Op::flush}) {
      for (const int64_t step : {0, 20, 100}) {
        SCOPED_TRACE(testing::Message() << static_cast<int>(op) << " " << step);
        released_ = false;
        Life life = stuck_life(config, directory_.path() + "/run" + std::to_string(at++),
                               hanging(op, step), options_.stuck);
        life.config.watchdog_s = 0.2;
        life.until_step = 3;
        const std::string failure = live(life).failures.front();
        if (failure.empty()) continue;  // so many there are not
        EXPECT_THAT(failure, HasSubstr("the disk does not answer the "));
        const size_t purpose = failure.find('(');
        met.insert(failure.substr(purpose + 1, failure.find(',') - purpose - 1));
      }
    }
  }
  EXPECT_THAT(met, testing::IsSupersetOf({"read for update", "write after update", "journal"}));
}

// As in a system call on a file system that is gone.
TEST_F(WatchdogTest, ACallerThatStandsStillIsToldOf) {
  engine::Watchdog watchdog(0.1, log_, options_.stuck);
  {
    const engine::Watchdog::Call call(&watchdog, "save_checkpoint");
    released_.wait(false);
  }
  EXPECT_THAT(log_.lines(), Contains(HasSubstr("save_checkpoint has stood still for")));
  EXPECT_THAT(told_, AllOf(HasSubstr("a file system does not answer"),
                           HasSubstr("save_checkpoint has not returned")));
  EXPECT_THROW(watchdog.throw_if_ended(), Error);
}

// Its thread does not come back from the kernel while something is under way.
class BlockedBackend final : public io::IoBackend {
 public:
  explicit BlockedBackend(const std::atomic<bool>& released) : released_(released) {}
  void submit(const io::Transfer& transfer) override {
    under_way_ = true;
    inner_->submit(transfer);
  }
  size_t reap(std::span<io::Completion> out, std::chrono::milliseconds timeout) override {
    if (under_way_) released_.wait(false);
    return inner_->reap(out, timeout);
  }
  void wake() override { inner_->wake(); }
  uint32_t max_in_flight() const override { return inner_->max_in_flight(); }
  std::string name() const override { return "blocked"; }

 private:
  const std::atomic<bool>& released_;
  const std::unique_ptr<io::IoBackend> inner_ = io::make_thread_backend(4, 1);
  bool under_way_ = false;
};

TEST_F(WatchdogTest, AnIoThreadThatDoesNotComeBackIsToldOf) {
  NullTrafficSink traffic;
  const io::BlockFile file =
      io::BlockFile::create_scratch(directory_.path(), 4096, {io::DirectMode::off}, log_);
  std::vector<std::byte> data(4096);
  offload::Pump pump(std::make_unique<io::IoEngine>(std::make_unique<BlockedBackend>(released_),
                                                    io::IoEngine::Options{}, traffic),
                     2);
  engine::Watchdog watchdog(0.1, log_, options_.stuck);
  watchdog.watch(pump);
  {
    const engine::Watchdog::Call call(&watchdog, "train_step");
    pump.submit({io::Op::read, &file, 0, data.data(), data.size(), {}}).wait();
  }
  EXPECT_THAT(told_, AllOf(HasSubstr("the I/O thread does not come back from the system: 1 "),
                           HasSubstr("train_step has not returned")));
  EXPECT_THROW(watchdog.throw_if_ended(), IoError);
}

TEST_F(WatchdogTest, ACallerThatIsOutsideIsLeftAlone) {
  engine::Watchdog watchdog(0.01, log_, options_.stuck);
  { const engine::Watchdog::Call call(&watchdog, "settle"); }
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  watchdog.throw_if_ended();
  EXPECT_TRUE(log_.lines().empty());
}

}  // namespace
}  // namespace strata
