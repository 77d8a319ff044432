// A TCP port for the processes of a test to meet at.
#pragma once

#include <arpa/inet.h>
#include <unistd.h>

#include <atomic>

#include "engine/comm/socket.h"
#include "strata/error.h"

namespace strata::testing_support {

// A port of this machine that nobody listens at, another one at each call. It lies below those that
// the system hands out, of which any connection may take one before the test does, and processes
// that test at the same time begin to look at different ones.
inline int free_port() {
  constexpr int kFirst = 10000, kPorts = 20000, kOfProcess = 32;
  static std::atomic<int> next = getpid() * kOfProcess;
  for (int tries = 0; tries < kPorts; ++tries) {
    const int port = kFirst + static_cast<int>(static_cast<unsigned>(next++) % kPorts);
    try {
      engine::Socket::listen({htonl(INADDR_LOOPBACK), htons(static_cast<uint16_t>(port))}, 1);
      return port;
    } catch (const CommError&) {  // somebody's
    }
  }
  throw CommError("no port is free here");
}

}  // namespace strata::testing_support
