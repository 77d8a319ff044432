// TCP between the processes of a run: for what MPI cannot be asked to carry, and where there is
// none.
//
// Sockets are closed on exec, do not block and raise no SIGPIPE. Deadlines are of
// strata::now_ns().
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>

namespace strata::engine {

// Where a socket listens; IPv4, both in network byte order.
struct SocketAddress {
  uint32_t ip = 0;
  uint16_t port = 0;
  bool operator==(const SocketAddress&) const = default;
};

// "127.0.0.1:29500"
std::string text(const SocketAddress& address);

// Owns a file descriptor of a socket, or nothing.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept;
  ~Socket() { close(); }

  // Listens at an address of this machine; at a port that the system chooses where it is 0. Throws
  // CommError.
  static Socket listen(const SocketAddress& address, int backlog);
  // Throws CommError when nobody listens there, or does not answer before the deadline.
  static Socket connect(const SocketAddress& address, int64_t deadline_ns);
  // The next connection to this listening socket; an empty socket when none comes in time. Throws
  // CommError.
  Socket accept(int64_t deadline_ns) const;
  SocketAddress address() const;
  SocketAddress peer_address() const;

  bool is_open() const { return fd_ >= 0; }
  int fd() const { return fd_; }  // -1 when closed
  void close() noexcept;

  // Whether all of it went, or came, before the deadline.
  bool send(std::span<const std::byte> bytes, int64_t deadline_ns) const noexcept;
  bool receive(std::span<std::byte> bytes, int64_t deadline_ns) const noexcept;

  // How many bytes went, or came, at once: possibly none. Nothing when the connection has ended.
  // `more` holds a little back until what follows it is sent.
  std::optional<size_t> send_some(std::span<const std::byte> bytes,
                                  bool more = false) const noexcept;
  std::optional<size_t> receive_some(std::span<std::byte> bytes) const noexcept;

 private:
  int fd_ = -1;
};

}  // namespace strata::engine
