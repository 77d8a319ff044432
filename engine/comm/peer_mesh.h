// Connects every two processes of a run with a socket: for the watch (peer_watch.h), and for the
// bytes themselves where they go over TCP.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/comm/socket.h"

namespace strata::engine {

// Names the interface that ranks of several machines meet over, "eth0" for example. Without it, the
// first one that is up, is no loopback and has an IPv4 address. Ranks of one machine need none:
// they use 127.0.0.1, and nobody's name is ever resolved.
inline constexpr const char* kInterfaceVariable = "STRATA_COMM_INTERFACE";

struct MeshOptions {
  int rank = 0;
  int size = 1;
  bool one_machine = true;  // the same answer on all ranks
  double timeout_s = 600;
};

// Everybody's bytes in rank order, however they travel: an all-gather.
using Announce = std::function<void(std::span<const std::byte> mine, std::span<std::byte> all)>;

// Collective. A socket for every other rank, by rank; this rank's own is empty. A rank listens,
// announces where, connects to those before it and waits for those behind it. Whoever connects
// without the number that was announced is turned away. Throws CommError naming the ranks that did
// not come, ConfigError where there is no interface to use.
std::vector<Socket> connect_peers(const MeshOptions& options, const Announce& announce);

}  // namespace strata::engine
