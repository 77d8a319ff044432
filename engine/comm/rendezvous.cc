#include "engine/comm/rendezvous.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <type_traits>
#include <utility>

#include "engine/comm/deadline.h"
#include "engine/comm/failure_text.h"
#include "strata/clock.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

// A port may be anybody's: what does not begin with this is not of a run.
using Magic = std::array<char, 8>;
constexpr Magic kMagic = {'s', 't', 'r', 'a', 't', 'a', ' ', '1'};

// A rank's first words.
struct Hello {
  Magic magic = kMagic;
  int32_t rank = 0;
  int32_t size = 0;
};

// What rank 0 says goes ahead of the bytes, or of the text of a failure.
enum class Verdict : uint32_t { good, bad_input, lost };
struct Answer {
  Magic magic = kMagic;
  Verdict verdict = Verdict::good;
  uint32_t bytes = 0;
};

template <typename T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}
template <typename T>
std::span<std::byte> room_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

bool is_loopback(uint32_t ip) { return ntohl(ip) >> 24 == 127; }

// Whether whoever is at the other end is on this machine.
bool is_from_here(const Socket& socket) {
  const uint32_t ip = socket.peer_address().ip;
  return is_loopback(ip) || ip == socket.address().ip;
}

std::string text(const World::Master& master) {
  return fmt::format("{}:{}", master.address, master.port);
}

bool is_number(const std::string& address, uint32_t& ip) {
  return inet_pton(AF_INET, address.c_str(), &ip) == 1;
}

// Throws CommError where a name may be known later, ConfigError where it is none.
uint32_t resolve(const std::string& address) {
  uint32_t ip = 0;
  if (is_number(address, ip)) return ip;
  const addrinfo hints = {.ai_flags = 0,
                          .ai_family = AF_INET,
                          .ai_socktype = SOCK_STREAM,
                          .ai_protocol = 0,
                          .ai_addrlen = 0,
                          .ai_addr = nullptr,
                          .ai_canonname = nullptr,
                          .ai_next = nullptr};
  addrinfo* found = nullptr;
  const int result = getaddrinfo(address.c_str(), nullptr, &hints, &found);
  if (result == 0) {
    const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
    return reinterpret_cast<const sockaddr_in*>(found->ai_addr)->sin_addr.s_addr;
  }
  const std::string why = fmt::format(
      "MASTER_ADDR is \"{}\", which has no IPv4 address here ({}): set it to the address "
      "of rank 0's machine",
      address, gai_strerror(result));
  if (result == EAI_AGAIN) throw CommError(why);
  throw ConfigError(why);
}

// Rank 0's place. Its machine may know its own name as a loopback's, which nobody else could reach.
SocketAddress place_to_listen(const World::Master& master) {
  uint32_t ip = htonl(INADDR_ANY);
  is_number(master.address, ip);
  return {ip, htons(static_cast<uint16_t>(master.port))};
}

}  // namespace

Rendezvous::Rendezvous(const World& world, double timeout_s)
    : rank_(world.rank),
      size_(world.size),
      timeout_s_(timeout_s),
      deadline_ns_(deadline_ns_after(timeout_s)),
      address_(text(world.master)) {
  if (rank_ == 0) {
    receive_all(world.master);
  } else {
    go(world.master);
  }
}

void Rendezvous::receive_all(const World::Master& master) {
  Socket listener;
  try {
    listener = Socket::listen(place_to_listen(master), size_);
  } catch (const CommError& error) {
    throw ConfigError(
        fmt::format("{}: set MASTER_ADDR to an address of rank 0's machine and MASTER_PORT to a "
                    "port that is free there",
                    error.what()));
  }
  ranks_.resize(size_);
  while (!missing().empty()) {
    Socket caller = listener.accept(deadline_ns_);
    if (!caller.is_open()) {
      refuse<CommError>(stalled_text(missing(), {}, timeout_s_));
    }
    admit(std::move(caller));
  }
  answer(bytes_of(one_machine_));
}

// Turns strangers away.
void Rendezvous::admit(Socket caller) {
  constexpr int64_t kPatience_ns = 5'000'000'000;  // a stranger must not hold up the others
  Hello hello;
  if (!caller.receive(room_of(hello), now_ns() + kPatience_ns) || hello.magic != kMagic) return;
  const int32_t rank = hello.rank;
  const bool is_known = hello.size == size_ && rank > 0 && rank < size_ && !ranks_[rank].is_open();
  if (is_known) {
    one_machine_ = one_machine_ && is_from_here(caller);
    ranks_[rank] = std::move(caller);
    return;
  }
  ranks_.push_back(std::move(caller));  // it is told too
  if (hello.size != size_) {
    refuse<ConfigError>(
        fmt::format("rank {} was started as one of {}, rank 0 as one of {}: give all processes the "
                    "same number of ranks",
                    rank, hello.size, size_));
  }
  refuse<ConfigError>(fmt::format(
      "two processes came as rank {} to {}: give each a rank of its own, and each run a "
      "MASTER_PORT of its own",
      rank, address_));
}

void Rendezvous::go(const World::Master& master) {
  ranks_.push_back(connect(master));
  ranks_[0].send(bytes_of(Hello{.rank = rank_, .size = size_}), deadline_ns_);
  hear_answer(room_of(one_machine_));
}

Socket Rendezvous::connect(const World::Master& master) const {
  constexpr std::chrono::milliseconds kBetweenTries(50);
  std::string why;
  for (;;) {
    try {
      const SocketAddress there = {resolve(master.address),
                                   htons(static_cast<uint16_t>(master.port))};
      Socket socket = Socket::connect(there, deadline_ns_);
      // Where nobody listens at a port that the system may choose for a caller, TCP can connect it
      // to itself.
      if (socket.address() != socket.peer_address()) return socket;
    } catch (const CommError& error) {
      // The last try ends for lack of time; what was before it tells more.
      const bool is_late = now_ns() >= deadline_ns_;
      if (!is_late || why.empty()) why = error.what();
      if (is_late) {
        const std::array<int, 1> rank_0 = {0};
        throw CommError(fmt::format("{}: {}", stalled_text(rank_0, {}, timeout_s_), why));
      }
    }
    std::this_thread::sleep_for(kBetweenTries);
  }
}

void Rendezvous::all_gather(std::span<const std::byte> mine, std::span<std::byte> all) {
  if (rank_ != 0) {
    ranks_[0].send(mine, deadline_ns_after(timeout_s_));
    return hear_answer(all);
  }
  const int64_t deadline_ns = deadline_ns_after(timeout_s_);
  std::copy(mine.begin(), mine.end(), all.begin());
  for (int rank = 1; rank < size_; ++rank) {
    if (!ranks_[rank].receive(all.subspan(rank * mine.size(), mine.size()), deadline_ns)) {
      refuse<CommError>(fmt::format("rank {} was lost while the ranks connected", rank));
    }
  }
  answer(all);
}

// Tells those that came, and this rank's caller.
template <typename Failure>
void Rendezvous::refuse(const std::string& text) {
  constexpr bool kBadInput = std::is_same_v<Failure, ConfigError>;
  const Answer head = {.verdict = kBadInput ? Verdict::bad_input : Verdict::lost,
                       .bytes = static_cast<uint32_t>(std::min(text.size(), kMaxFailureBytes))};
  for (const Socket& rank : ranks_) {
    if (!rank.is_open()) continue;
    rank.send(bytes_of(head), now_ns() + 1'000'000'000);
    rank.send(std::as_bytes(std::span(text)).first(head.bytes), now_ns() + 1'000'000'000);
  }
  throw Failure(text);
}

// One that does not take it is lost, and whoever connects to it will tell.
void Rendezvous::answer(std::span<const std::byte> bytes) const {
  const Answer head = {.bytes = static_cast<uint32_t>(bytes.size())};
  for (const Socket& rank : ranks_) {
    if (!rank.is_open()) continue;
    rank.send(bytes_of(head), deadline_ns_after(timeout_s_));
    rank.send(bytes, deadline_ns_after(timeout_s_));
  }
}

void Rendezvous::hear_answer(std::span<std::byte> bytes) const {
  // Rank 0 was there before this rank, and says by its own deadline who did not come.
  constexpr double kGrace_s = 10;
  const int64_t deadline_ns = deadline_ns_after(timeout_s_ + kGrace_s);
  Answer head;
  if (!ranks_[0].receive(room_of(head), deadline_ns)) {
    throw CommError(fmt::format("rank 0 was lost at {} while the ranks connected", address_));
  }
  if (head.magic != kMagic) {
    throw ConfigError(fmt::format(
        "what answers at {} is not rank 0 of this run: set MASTER_PORT to a free port", address_));
  }
  std::array<std::byte, kMaxFailureBytes> room = {};
  const bool good = head.verdict == Verdict::good;
  const std::span<std::byte> rest =
      good ? bytes : std::span(room).first(std::min<size_t>(head.bytes, room.size()));
  const bool whole = ranks_[0].receive(rest, deadline_ns);
  const std::string text(reinterpret_cast<const char*>(room.data()), good ? 0 : rest.size());
  if (head.verdict == Verdict::bad_input) throw ConfigError(text);
  if (head.verdict == Verdict::lost) throw CommError(text);
  if (!whole)
    throw CommError(fmt::format("rank 0 was lost at {} while the ranks connected", address_));
}

std::vector<int> Rendezvous::missing() const {
  std::vector<int> ranks;
  for (int rank = 1; rank < size_; ++rank) {
    if (!ranks_[rank].is_open()) ranks.push_back(rank);
  }
  return ranks;
}

}  // namespace strata::engine
