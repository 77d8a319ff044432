#include "offload/recorder.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

#include "strata/error.h"
#include "tests/offload/offload_fixture.h"

namespace strata::offload {
namespace {

TrafficRecord read_of(uint64_t bytes) {
  TrafficRecord record;
  record.activity = Activity::nvme_read;
  record.tag = {StateKind::exp_avg, 7, "read state"};
  record.lane = "nvme";
  record.bytes = bytes;
  record.begin_ns = 1000;
  record.end_ns = 3500;
  return record;
}

TEST(RecorderTest, TotalsAreExactEvenWhenEventsAreDropped) {
  constexpr size_t kEvents = 100;
  Recorder recorder(kEvents);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) recorder.record(read_of(3));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(recorder.link_bytes()[0], 12000u);
  EXPECT_EQ(recorder.link_bytes(StateKind::exp_avg)[0], 12000u);
  EXPECT_EQ(recorder.link_bytes(StateKind::master)[0], 0u);
  EXPECT_EQ(recorder.dropped_events(), 4000u - kEvents);
}

TEST(RecorderTest, TellsTheUpdatesBytesFromTheRest) {
  Recorder recorder(0);
  TrafficRecord of_update = read_of(5);
  of_update.tag.account = Account::update;
  recorder.record(of_update);
  recorder.record(read_of(3));
  EXPECT_EQ(recorder.link_bytes(Account::update)[0], 5u);
  EXPECT_EQ(recorder.link_bytes(Account::step)[0], 3u);
  EXPECT_EQ(recorder.link_bytes()[0], 8u);
  EXPECT_EQ(recorder.link_bytes(StateKind::exp_avg)[0], 8u);
}

TEST(RecorderTest, WaitsAreSummedByLabel) {
  Recorder recorder(0);
  TrafficRecord wait = read_of(0);
  wait.activity = Activity::wait;
  for (const char* label : {"a", "b", "a"}) {
    wait.tag.label = label;
    recorder.record(wait);
  }
  EXPECT_EQ(recorder.waited_ns("a"), 5000);
  EXPECT_EQ(recorder.waited_ns("b"), 2500);
  EXPECT_EQ(recorder.waited_ns("c"), 0);
  EXPECT_EQ(recorder.link_bytes()[0], 0u);
}

TEST(RecorderTest, TraceHoldsTheEventsAndRefusesABadPath) {
  const TemporaryDirectory directory;
  Recorder recorder(10);
  recorder.record(read_of(42));
  const std::string path = directory.path() + "/trace.json";
  recorder.write_trace(path);
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  EXPECT_NE(text.str().find("\"name\":\"read state\""), std::string::npos);
  EXPECT_NE(text.str().find("\"ts\":1.000,\"dur\":2.500"), std::string::npos);
  EXPECT_NE(text.str().find("\"bytes\":42"), std::string::npos);
  EXPECT_THROW(recorder.write_trace(directory.path() + "/no/such/place"), IoError);
}

}  // namespace
}  // namespace strata::offload
