// The watch tells deaths, failures and departures apart, whatever comes over its sockets.
#include "engine/comm/peer_watch.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "strata/clock.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

using Sockets = std::vector<Socket>;

void connect(Sockets& one, int peer_of_one, Sockets& other, int peer_of_other) {
  int fds[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
  one[peer_of_one] = Socket(fds[0]);
  other[peer_of_other] = Socket(fds[1]);
}

// A socket between every two of `size` ranks.
std::vector<Sockets> mesh(int size) {
  std::vector<Sockets> ranks(size);
  for (Sockets& sockets : ranks) sockets.resize(size);
  for (int one = 0; one < size; ++one) {
    for (int other = 0; other < one; ++other) connect(ranks[one], other, ranks[other], one);
  }
  return ranks;
}

using Watches = std::vector<std::unique_ptr<PeerWatch>>;

Watches watches(int size) {
  Watches result;
  for (Sockets& sockets : mesh(size)) {
    result.push_back(std::make_unique<PeerWatch>(std::move(sockets)));
  }
  return result;
}

// Returns once `condition` holds, or after a time in which it should long have.
template <typename Condition>
bool eventually(const Condition& condition) {
  const int64_t deadline_ns = now_ns() + 30'000'000'000;
  while (!condition()) {
    if (now_ns() > deadline_ns) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

// What `watch` was told, "" when it is not told in time.
std::string told(const PeerWatch& watch) {
  if (!eventually([&] { return watch.failed(); })) return "";
  try {
    watch.check();
  } catch (const CommError& error) {
    return error.what();
  }
  return "";
}

// What PeerWatch sends, spelled out: a word, the length of its text, trades, the text.
struct WireHeader {
  uint32_t word;
  uint32_t text_bytes;
  uint64_t trades;
};

std::vector<std::byte> wire(const WireHeader& header, std::string_view text = "") {
  std::vector<std::byte> bytes(sizeof(header) + text.size());
  std::memcpy(bytes.data(), &header, sizeof(header));
  if (!text.empty()) std::memcpy(bytes.data() + sizeof(header), text.data(), text.size());
  return bytes;
}

// A watch of rank 0 of two, and the bare end of the socket to it.
class BarePeer {
 public:
  BarePeer() {
    std::vector<Sockets> ranks = mesh(2);
    peer = std::move(ranks[1][0]);
    watch = std::make_unique<PeerWatch>(std::move(ranks[0]));
  }
  void send(std::span<const std::byte> bytes) const {
    EXPECT_TRUE(peer.send(bytes, now_ns() + 1'000'000'000));
  }

  Socket peer;
  std::unique_ptr<PeerWatch> watch;
};

TEST(PeerWatch, ADeathIsToldToEverybody) {
  Watches ranks = watches(4);
  ranks[2].reset();  // without a word
  for (const int rank : {0, 1, 3}) EXPECT_EQ(told(*ranks[rank]), "rank 2 died") << rank;
}

TEST(PeerWatch, AFailureIsToldToEverybodyAndTheFirstStays) {
  Watches ranks = watches(4);
  ranks[1]->fail("rank 1 failed: a reason");
  ranks[1]->fail("rank 1 failed: another");
  for (const auto& rank : ranks) EXPECT_EQ(told(*rank), "rank 1 failed: a reason");
}

// The end of a rank that was told must not be taken for the cause by one that was not told yet.
TEST(PeerWatch, WhoeverEndsOverAFailurePassesItOnFirst) {
  for (int round = 0; round < 50; ++round) {
    Watches ranks = watches(3);
    ranks[2].reset();
    EXPECT_EQ(told(*ranks[1]), "rank 2 died");
    ranks[1].reset();
    EXPECT_EQ(told(*ranks[0]), "rank 2 died");
  }
}

TEST(PeerWatch, LeavingIsNoFailure) {
  Watches ranks = watches(3);
  EXPECT_FALSE(ranks[0]->left_before(1, 1));
  ranks[1]->leave(5);
  ranks[1].reset();
  for (const int rank : {0, 2}) {
    EXPECT_TRUE(eventually([&] { return ranks[rank]->left_before(1, 6); }));
    EXPECT_FALSE(ranks[rank]->left_before(1, 5));
    EXPECT_FALSE(ranks[rank]->left_before(0, 6));
    EXPECT_FALSE(ranks[rank]->failed());
  }
}

TEST(PeerWatch, AllMayLeaveAtOnce) {
  for (int round = 0; round < 20; ++round) {
    Watches ranks = watches(4);
    std::vector<std::jthread> threads;
    for (auto& rank : ranks) {
      threads.emplace_back([&rank] {
        rank->leave(1);
        EXPECT_FALSE(rank->failed());
        rank.reset();
      });
    }
  }
}

TEST(PeerWatch, ThoseWhoStayStillWatchEachOther) {
  Watches ranks = watches(3);
  ranks[0]->leave(5);
  ranks[0].reset();
  ranks[1].reset();
  EXPECT_EQ(told(*ranks[2]), "rank 1 died");
}

TEST(PeerWatch, ATextIsCutToItsBound) {
  Watches ranks = watches(2);
  ranks[0]->fail(std::string(100'000, 'x'));
  for (const auto& rank : ranks) EXPECT_EQ(told(*rank), std::string(kMaxFailureBytes, 'x'));
}

TEST(PeerWatch, AWordMayComeAByteAtATime) {
  const BarePeer bare;
  for (const std::byte byte : wire({2, 5, 0}, "alas!")) {
    EXPECT_FALSE(bare.watch->failed());
    bare.send({&byte, 1});
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(told(*bare.watch), "alas!");
}

TEST(PeerWatch, AWordCutShortIsADeath) {
  BarePeer bare;
  const std::vector<std::byte> word = wire({2, 5, 0}, "alas!");
  bare.send(std::span(word).first(word.size() - 1));
  bare.peer.close();
  EXPECT_EQ(told(*bare.watch), "rank 1 died");
}

TEST(PeerWatch, WhatIsNoWordIsADeath) {
  for (const WireHeader& header : {WireHeader{2, 1u << 30, 0}, WireHeader{77, 0, 0}}) {
    const BarePeer bare;
    bare.send(wire(header));
    EXPECT_EQ(told(*bare.watch), "rank 1 died");
  }
}

TEST(PeerWatch, WhatFollowsTheLastWordIsIgnored) {
  const BarePeer bare;
  bare.send(wire({1, 0, 3}));
  bare.send(wire({2, 5, 0}, "alas!"));
  bare.send(std::vector<std::byte>(10'000));
  EXPECT_TRUE(eventually([&] { return bare.watch->left_before(1, 4); }));
  EXPECT_FALSE(bare.watch->failed());
}

TEST(PeerWatch, APeerThatIsStoppedAndFullHoldsNobodyUp) {
  std::vector<Sockets> ranks = mesh(2);
  const std::vector<std::byte> filling(1 << 20);
  while (ranks[0][1].send(filling, now_ns())) {
  }
  PeerWatch watch(std::move(ranks[0]));
  watch.fail("alas!");
  EXPECT_EQ(told(watch), "alas!");
}

}  // namespace
}  // namespace strata::engine
