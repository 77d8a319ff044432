#include "engine/comm/peer_mesh.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>
#include <string_view>

#include "engine/comm/deadline.h"
#include "engine/comm/failure_text.h"
#include "strata/clock.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

// What a rank announces. The key keeps out what is not of this run.
struct Door {
  uint64_t key = 0;
  SocketAddress address;
};

// The first words on a new connection.
struct Hello {
  uint64_t key = 0;  // of the one that is connected to
  int64_t rank = 0;  // the one that connects
};

template <typename T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

bool usable(const ifaddrs& interface, const char* wanted) {
  if (interface.ifa_addr == nullptr || interface.ifa_addr->sa_family != AF_INET) return false;
  if (wanted != nullptr) return std::string_view(wanted) == interface.ifa_name;
  return (interface.ifa_flags & IFF_UP) != 0 && (interface.ifa_flags & IFF_LOOPBACK) == 0;
}

uint32_t ip_of_interface() {
  const char* const wanted = std::getenv(kInterfaceVariable);
  ifaddrs* first = nullptr;
  if (getifaddrs(&first) != 0) first = nullptr;
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(first, &freeifaddrs);
  for (const ifaddrs* interface = first; interface != nullptr; interface = interface->ifa_next) {
    if (!usable(*interface, wanted)) continue;
    return reinterpret_cast<const sockaddr_in*>(interface->ifa_addr)->sin_addr.s_addr;
  }
  if (wanted != nullptr) {
    throw ConfigError(fmt::format("{} is \"{}\", which has no IPv4 address here: name one that has",
                                  kInterfaceVariable, wanted));
  }
  throw ConfigError(fmt::format(
      "no network interface with an IPv4 address to meet the other machines' ranks: set {} to the "
      "name of one",
      kInterfaceVariable));
}

uint64_t random_key() {
  std::random_device random;
  return uint64_t{random()} << 32 | random();
}

void connect_to_those_before(int rank, const std::vector<Door>& doors, int64_t deadline_ns,
                             std::vector<Socket>& peers) {
  for (int peer = 0; peer < rank; ++peer) {
    peers[peer] = Socket::connect(doors[peer].address, deadline_ns);
    // It is lost, and the watch will tell, when it does not take these few bytes.
    peers[peer].send(bytes_of(Hello{doors[peer].key, rank}), deadline_ns);
  }
}

std::vector<int> missing_behind(int rank, const std::vector<Socket>& peers) {
  std::vector<int> missing;
  for (int peer = rank + 1; peer < static_cast<int>(peers.size()); ++peer) {
    if (!peers[peer].is_open()) missing.push_back(peer);
  }
  return missing;
}

// The caller's rank; -1 for one that is not expected.
int identify(const Socket& caller, uint64_t key, const std::vector<int>& expected) {
  constexpr int64_t kPatience_ns = 1'000'000'000;  // a stranger must not hold up the others
  Hello hello;
  if (!caller.receive(std::as_writable_bytes(std::span(&hello, 1)), now_ns() + kPatience_ns) ||
      hello.key != key) {
    return -1;
  }
  const auto found = std::find(expected.begin(), expected.end(), hello.rank);
  return found == expected.end() ? -1 : *found;
}

}  // namespace

std::vector<Socket> connect_peers(const MeshOptions& options, const Announce& announce) {
  const uint32_t ip = options.one_machine ? htonl(INADDR_LOOPBACK) : ip_of_interface();
  const Socket listener = Socket::listen({ip, 0}, options.size);
  const Door mine = {random_key(), listener.address()};
  std::vector<Door> doors(options.size);
  announce(bytes_of(mine), std::as_writable_bytes(std::span(doors)));

  const int64_t deadline_ns = deadline_ns_after(options.timeout_s);
  std::vector<Socket> peers(options.size);
  connect_to_those_before(options.rank, doors, deadline_ns, peers);
  for (auto missing = missing_behind(options.rank, peers); !missing.empty();
       missing = missing_behind(options.rank, peers)) {
    Socket caller = listener.accept(deadline_ns);
    if (!caller.is_open()) {
      throw CommError(stalled_text(missing, {.verb = Verb::make_communicator}, options.timeout_s));
    }
    const int peer = identify(caller, mine.key, missing);
    if (peer >= 0) peers[peer] = std::move(caller);
  }
  return peers;
}

}  // namespace strata::engine
