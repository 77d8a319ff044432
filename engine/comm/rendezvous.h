// Where processes that know no more than an address find each other: rank 0 listens there, the
// others come to it, and small values go round through it until all are connected otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/comm/socket.h"
#include "strata/world.h"

namespace strata::engine {

class Rendezvous {
 public:
  // Collective. The others try until rank 0 listens. Throws ConfigError where MASTER_ADDR is no
  // address or rank 0 cannot listen there, and on every rank where two came as the same or with
  // another size; CommError naming the ranks that did not come.
  Rendezvous(const World& world, double timeout_s);

  // "127.0.0.1:29500"
  const std::string& address() const { return address_; }
  // Whether all ranks came from the machine that rank 0 is on; the same answer on all.
  bool one_machine() const { return one_machine_; }

  // Collective. Everybody's bytes in rank order. Throws CommError naming a rank that was lost.
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all);

 private:
  void receive_all(const World::Master& master);
  void admit(Socket caller);
  void go(const World::Master& master);
  Socket connect(const World::Master& master) const;
  template <typename Failure>
  [[noreturn]] void refuse(const std::string& text);
  void answer(std::span<const std::byte> bytes) const;
  void hear_answer(std::span<std::byte> bytes) const;
  std::vector<int> missing() const;

  const int rank_;
  const int size_;
  const double timeout_s_;
  const int64_t deadline_ns_;
  const std::string address_;
  bool one_machine_ = true;
  std::vector<Socket> ranks_;  // rank 0: the others, by rank; otherwise rank 0 alone
};

}  // namespace strata::engine
