// Sockets between every two ranks, and none to anybody else.
#include "engine/comm/peer_mesh.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <barrier>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "strata/clock.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

constexpr int64_t kSecond_ns = 1'000'000'000;

// An all-gather between threads.
class Board {
 public:
  explicit Board(int size) : here_(size), size_(size) {}

  Announce announce_for(int rank) {
    return [this, rank](std::span<const std::byte> mine, std::span<std::byte> all) {
      if (rank == 0) bytes_.resize(all.size());
      here_.arrive_and_wait();
      std::copy(mine.begin(), mine.end(), bytes_.begin() + rank * mine.size());
      here_.arrive_and_wait();
      std::copy(bytes_.begin(), bytes_.end(), all.begin());
    };
  }

  // Where rank `rank` listens, as it announced it: a key, then the address.
  SocketAddress address_of(int rank) const {
    SocketAddress address;
    std::memcpy(&address, bytes_.data() + rank * (bytes_.size() / size_) + sizeof(uint64_t),
                sizeof(address));
    return address;
  }

 private:
  std::barrier<> here_;
  const int size_;
  std::vector<std::byte> bytes_;
};

std::vector<std::vector<Socket>> connect_all(int size, bool one_machine = true) {
  Board board(size);
  std::vector<std::vector<Socket>> meshes(size);
  std::vector<std::jthread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      meshes[rank] = connect_peers({rank, size, one_machine, 60}, board.announce_for(rank));
    });
  }
  threads.clear();
  return meshes;
}

TEST(PeerMesh, JoinsEveryTwoRanks) {
  for (const int size : {1, 2, 3, 8}) {
    const auto meshes = connect_all(size);
    for (int from = 0; from < size; ++from) {
      for (int to = 0; to < size; ++to) {
        ASSERT_EQ(meshes[from][to].is_open(), from != to);
        if (from == to) continue;
        const auto sent = static_cast<std::byte>(16 * from + to);
        std::byte received{0};
        EXPECT_TRUE(meshes[from][to].send({&sent, 1}, now_ns() + kSecond_ns));
        EXPECT_TRUE(meshes[to][from].receive({&received, 1}, now_ns() + 30 * kSecond_ns));
        EXPECT_EQ(received, sent);
      }
    }
  }
}

TEST(PeerMesh, SocketsAreNotInheritedByOtherPrograms) {
  const auto meshes = connect_all(2);
  EXPECT_NE(fcntl(meshes[0][1].fd(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_NE(fcntl(meshes[1][0].fd(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(PeerMesh, StrangersAreTurnedAway) {
  Board board(2);
  std::vector<Socket> of_first, of_second;
  std::vector<std::jthread> threads;
  threads.emplace_back([&] { of_first = connect_peers({0, 2, true, 60}, board.announce_for(0)); });
  threads.emplace_back([&] {
    const Announce announce = board.announce_for(1);
    of_second = connect_peers({1, 2, true, 60}, [&](auto mine, auto all) {
      announce(mine, all);
      // Before this rank's own: one with a wrong key, one that hangs up.
      const SocketAddress door = board.address_of(0);
      const std::vector<std::byte> nonsense(100, std::byte{7});
      Socket::connect(door, now_ns() + kSecond_ns).send(nonsense, now_ns() + kSecond_ns);
      Socket::connect(door, now_ns() + kSecond_ns);
    });
  });
  threads.clear();
  const std::byte sent{42};
  std::byte received{0};
  EXPECT_TRUE(of_second[0].send({&sent, 1}, now_ns() + kSecond_ns));
  EXPECT_TRUE(of_first[1].receive({&received, 1}, now_ns() + 30 * kSecond_ns));
  EXPECT_EQ(received, sent);
}

TEST(PeerMesh, RanksThatDoNotComeAreNamed) {
  const auto alone = [](std::span<const std::byte> mine, std::span<std::byte> all) {
    std::copy(mine.begin(), mine.end(), all.begin());
  };
  EXPECT_THAT(([&] {
                connect_peers({0, 3, true, 0.2}, alone);
              }),
              testing::ThrowsMessage<CommError>(
                  "ranks 1 and 2 did not come to make_communicator within 0.2 s"));
}

TEST(PeerMesh, AnInterfaceThatIsNotThereIsRefused) {
  setenv(kInterfaceVariable, "nowhere0", 1);
  const Announce never = [](auto, auto) { FAIL() << "nothing to announce"; };
  EXPECT_THAT(([&] {
                connect_peers({0, 2, false, 1}, never);
              }),
              testing::ThrowsMessage<ConfigError>(
                  "STRATA_COMM_INTERFACE is \"nowhere0\", which has no IPv4 address here: name one "
                  "that has"));
  unsetenv(kInterfaceVariable);
}

TEST(PeerMesh, TheInterfaceThatIsNamedIsUsed) {
  setenv(kInterfaceVariable, "lo", 1);
  const auto meshes = connect_all(2, false);
  unsetenv(kInterfaceVariable);
  EXPECT_EQ(meshes[0][1].address().ip, htonl(INADDR_LOOPBACK));
}

}  // namespace
}  // namespace strata::engine
