// Ranks that know an address find each other there, and whoever is wrong or missing is named.
#include "engine/comm/rendezvous.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>

#include "engine/comm/tcp_transport.h"
#include "strata/clock.h"
#include "strata/error.h"
#include "tests/engine/comm/ranks.h"

namespace strata::engine {
namespace {

using testing::HasSubstr;
using testing_support::tcp_worlds;

constexpr int64_t kSecond_ns = 1'000'000'000;
constexpr double kLong_s = 120;

// What each of `worlds` was told, "" where it met no failure.
std::vector<std::string> told(const std::vector<World>& worlds, double timeout_s,
                              const std::function<void(const World&)>& before = {}) {
  std::vector<std::string> texts(worlds.size());
  std::vector<std::jthread> threads;
  for (size_t i = 0; i < worlds.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        if (before) before(worlds[i]);
        make_tcp_transport(worlds[i], {.timeout_s = timeout_s});
      } catch (const ConfigError& error) {
        texts[i] = std::string("config: ") + error.what();
      } catch (const CommError& error) {
        texts[i] = error.what();
      }
    });
  }
  threads.clear();
  return texts;
}

SocketAddress address_of(const World& world) {
  return {htonl(INADDR_LOOPBACK), htons(static_cast<uint16_t>(world.master.port))};
}

Socket come_to(const World& world) {
  for (;;) {
    try {
      return Socket::connect(address_of(world), now_ns() + kSecond_ns);
    } catch (const CommError&) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
}

TEST(Rendezvous, RanksComeInAnyOrder) {
  for (const int late : {0, 1, 2}) {
    const auto texts = told(tcp_worlds(3), kLong_s, [&](const World& world) {
      if (world.rank == late) std::this_thread::sleep_for(std::chrono::milliseconds(120));
    });
    EXPECT_THAT(texts, testing::Each("")) << "rank " << late << " came late";
  }
}

TEST(Rendezvous, SaysWhereTheRanksMet) {
  const auto worlds = tcp_worlds(2);
  std::jthread other([&] { make_tcp_transport(worlds[1], {}); });
  EXPECT_EQ(make_tcp_transport(worlds[0], {})->description(),
            "2 ranks over TCP, met at 127.0.0.1:" + std::to_string(worlds[0].master.port));
}

TEST(Rendezvous, ANameIsResolved) {
  auto worlds = tcp_worlds(2);
  for (World& world : worlds) world.master.address = "localhost";
  EXPECT_THAT(told(worlds, kLong_s), testing::Each(""));
}

TEST(Rendezvous, RanksThatDoNotComeAreNamedToThoseThatDid) {
  const auto worlds = tcp_worlds(4);
  EXPECT_THAT(told({worlds[0], worlds[2]}, 0.3),
              testing::Each("ranks 1 and 3 did not come to make_communicator within 0.3 s"));
}

TEST(Rendezvous, WithoutRankZeroNobodyListens) {
  const auto worlds = tcp_worlds(2);
  EXPECT_EQ(told({worlds[1]}, 0.2)[0],
            "rank 0 did not come to make_communicator within 0.2 s: this rank cannot connect to "
            "127.0.0.1:" +
                std::to_string(worlds[0].master.port) + ": Connection refused");
}

TEST(Rendezvous, TwoOfARankAreTold) {
  auto worlds = tcp_worlds(3);
  worlds[2].rank = 1;
  EXPECT_THAT(
      told(worlds, kLong_s),
      testing::Each("config: two processes came as rank 1 to 127.0.0.1:" +
                    std::to_string(worlds[0].master.port) +
                    ": give each a rank of its own, and each run a MASTER_PORT of its own"));
}

TEST(Rendezvous, RanksOfAnotherWorldAreTold) {
  auto worlds = tcp_worlds(2);
  worlds[1].size = 3;
  EXPECT_THAT(told(worlds, kLong_s),
              testing::Each("config: rank 1 was started as one of 3, rank 0 as one of 2: give all "
                            "processes the same number of ranks"));
}

TEST(Rendezvous, StrangersAreTurnedAway) {
  const auto texts = told(tcp_worlds(2), kLong_s, [](const World& world) {
    if (world.rank == 0) return;
    const std::vector<std::byte> nonsense(100, std::byte{7});
    come_to(world).send(nonsense, now_ns() + kSecond_ns);
    come_to(world);  // and hangs up
  });
  EXPECT_THAT(texts, testing::Each(""));
}

TEST(Rendezvous, AnotherProgramAtThePortIsNotRankZero) {
  const auto worlds = tcp_worlds(2);
  const Socket listener = Socket::listen(address_of(worlds[0]), 1);
  std::jthread other_program([&] {
    const Socket caller = listener.accept(now_ns() + 60 * kSecond_ns);
    const std::vector<std::byte> greeting(100, std::byte{'x'});
    caller.send(greeting, now_ns() + kSecond_ns);
    std::array<std::byte, 100> rest;
    caller.receive(rest, now_ns() + 60 * kSecond_ns);  // until it hangs up
  });
  EXPECT_EQ(told({worlds[1]}, kLong_s)[0],
            "config: what answers at 127.0.0.1:" + std::to_string(worlds[0].master.port) +
                " is not rank 0 of this run: set MASTER_PORT to a free port");
}

TEST(Rendezvous, APortThatIsTakenIsRefused) {
  const auto worlds = tcp_worlds(2);
  const Socket taken = Socket::listen(address_of(worlds[0]), 1);
  EXPECT_EQ(
      told({worlds[0]}, kLong_s)[0],
      "config: this rank cannot listen at 127.0.0.1:" + std::to_string(worlds[0].master.port) +
          ": Address already in use: set MASTER_ADDR to an address of rank 0's machine and "
          "MASTER_PORT to a port that is free there");
}

TEST(Rendezvous, AnAddressOfAnotherMachineIsNoneToListenAt) {
  auto worlds = tcp_worlds(2);
  worlds[0].master.address = "192.0.2.1";  // of documents, RFC 5737
  EXPECT_THAT(told({worlds[0]}, kLong_s)[0],
              HasSubstr("Cannot assign requested address: set MASTER_ADDR to an address of rank"));
}

TEST(Rendezvous, AnAddressThatIsNoneIsRefused) {
  auto worlds = tcp_worlds(2);
  worlds[1].master.address = "::1";
  EXPECT_THAT(told({worlds[1]}, 0.2)[0], HasSubstr("MASTER_ADDR is \"::1\", which has no IPv4"));
  worlds[1].master.address = "no name";
  EXPECT_THAT(told({worlds[1]}, 0.2)[0],
              HasSubstr("MASTER_ADDR is \"no name\", which has no IPv4"));
}

TEST(Rendezvous, ARankThatIsLostOnTheWayIsNamed) {
  const auto worlds = tcp_worlds(2);
  std::jthread rank_0([&] {
    EXPECT_THAT(told({worlds[0]}, kLong_s)[0], "rank 1 was lost while the ranks connected");
  });
  Rendezvous(worlds[1], kLong_s);  // comes, and goes before it has said where it listens
}

}  // namespace
}  // namespace strata::engine
