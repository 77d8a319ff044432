#include "engine/comm/socket.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "strata/clock.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

constexpr int kSocketFlags = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;

sockaddr_in to_sockaddr(const SocketAddress& address) {
  sockaddr_in result = {};
  result.sin_family = AF_INET;
  result.sin_addr.s_addr = address.ip;
  result.sin_port = address.port;
  return result;
}

SocketAddress from_sockaddr(const sockaddr_in& name) {
  return {name.sin_addr.s_addr, name.sin_port};
}

// A small message must not wait for an answer to the one before it.
void send_without_delay(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

[[noreturn]] void fail(const char* verb, const SocketAddress& address, int error_number) {
  throw CommError(
      fmt::format("this rank cannot {} {}: {}", verb, text(address), std::strerror(error_number)));
}

// Whether `fd` is ready for `events`, or in error, before the deadline.
bool wait_for(int fd, short events, int64_t deadline_ns) noexcept {
  constexpr int64_t kMaxWait_ms = 1000;
  for (;;) {
    const int64_t left_ms = (deadline_ns - now_ns()) / 1'000'000;
    if (left_ms < 0) return false;
    pollfd entry = {fd, events, 0};
    if (poll(&entry, 1, static_cast<int>(std::min(left_ms + 1, kMaxWait_ms))) > 0) return true;
  }
}

bool try_again(int error_number) {
  return error_number == EINTR || error_number == EAGAIN || error_number == EWOULDBLOCK;
}

}  // namespace

std::string text(const SocketAddress& address) {
  char ip[INET_ADDRSTRLEN] = {};
  inet_ntop(AF_INET, &address.ip, ip, sizeof(ip));
  return fmt::format("{}:{}", ip, ntohs(address.port));
}

Socket& Socket::operator=(Socket&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

Socket Socket::listen(const SocketAddress& address, int backlog) {
  Socket socket(::socket(AF_INET, kSocketFlags, 0));
  const sockaddr_in name = to_sockaddr(address);
  const int on = 1;  // connections of an earlier listener may linger
  if (!socket.is_open() || setsockopt(socket.fd_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
      bind(socket.fd_, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) != 0 ||
      ::listen(socket.fd_, backlog) != 0) {
    fail("listen at", address, errno);
  }
  return socket;
}

Socket Socket::connect(const SocketAddress& address, int64_t deadline_ns) {
  Socket socket(::socket(AF_INET, kSocketFlags, 0));
  const sockaddr_in name = to_sockaddr(address);
  if (!socket.is_open()) fail("connect to", address, errno);
  send_without_delay(socket.fd_);
  if (::connect(socket.fd_, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) == 0) {
    return socket;
  }
  // After a signal, too, the connection goes on being made.
  if (errno != EINPROGRESS && errno != EINTR) fail("connect to", address, errno);
  if (!wait_for(socket.fd_, POLLOUT, deadline_ns)) fail("connect to", address, ETIMEDOUT);
  int error_number = 0;
  socklen_t length = sizeof(error_number);
  getsockopt(socket.fd_, SOL_SOCKET, SO_ERROR, &error_number, &length);
  if (error_number != 0) fail("connect to", address, error_number);
  return socket;
}

Socket Socket::accept(int64_t deadline_ns) const {
  while (wait_for(fd_, POLLIN, deadline_ns)) {
    Socket socket(accept4(fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (socket.is_open()) {
      send_without_delay(socket.fd_);
      return socket;
    }
    // One that was given up before it was taken.
    if (!try_again(errno) && errno != ECONNABORTED) fail("accept at", address(), errno);
  }
  return {};
}

SocketAddress Socket::address() const {
  sockaddr_in name = {};
  socklen_t length = sizeof(name);
  getsockname(fd_, reinterpret_cast<sockaddr*>(&name), &length);
  return from_sockaddr(name);
}

SocketAddress Socket::peer_address() const {
  sockaddr_in name = {};
  socklen_t length = sizeof(name);
  getpeername(fd_, reinterpret_cast<sockaddr*>(&name), &length);
  return from_sockaddr(name);
}

void Socket::close() noexcept {
  if (is_open()) ::close(std::exchange(fd_, -1));
}

std::optional<size_t> Socket::send_some(std::span<const std::byte> bytes,
                                        bool more) const noexcept {
  const int flags = MSG_NOSIGNAL | MSG_DONTWAIT | (more ? MSG_MORE : 0);
  const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), flags);
  if (sent >= 0) return sent;
  return try_again(errno) ? std::optional<size_t>(0) : std::nullopt;
}

std::optional<size_t> Socket::receive_some(std::span<std::byte> bytes) const noexcept {
  const ssize_t received = recv(fd_, bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (received > 0) return received;
  return received < 0 && try_again(errno) ? std::optional<size_t>(0) : std::nullopt;
}

bool Socket::send(std::span<const std::byte> bytes, int64_t deadline_ns) const noexcept {
  while (!bytes.empty()) {
    const std::optional<size_t> sent = send_some(bytes);
    if (!sent || (*sent == 0 && !wait_for(fd_, POLLOUT, deadline_ns))) return false;
    bytes = bytes.subspan(*sent);
  }
  return true;
}

bool Socket::receive(std::span<std::byte> bytes, int64_t deadline_ns) const noexcept {
  while (!bytes.empty()) {
    const std::optional<size_t> received = receive_some(bytes);
    if (!received || (*received == 0 && !wait_for(fd_, POLLIN, deadline_ns))) return false;
    bytes = bytes.subspan(*received);
  }
  return true;
}

}  // namespace strata::engine
