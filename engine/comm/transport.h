// The seam between the verbs and the ways in which ranks are connected: one collective step in
// which every rank gives bytes to each of the others and takes as many from each.
//
// Implementations: LocalTransport (threads of one process), MpiTransport and TcpTransport
// (processes).
// HostCommunicator makes the verbs of it; DeviceCommunicator watches over them with it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

namespace strata::engine {

enum class Verb : uint32_t { make_communicator, all_gather, reduce_scatter, exchange };

constexpr std::string_view name(Verb verb) {
  constexpr std::array<std::string_view, 4> names = {"make_communicator", "all_gather",
                                                     "reduce_scatter", "exchange"};
  return names[static_cast<size_t>(verb)];
}

// What all ranks must agree on (but for the label), and what a failure is told with.
struct Call {
  Verb verb = Verb::make_communicator;
  const char* label = "";  // of the caller's tag
  uint64_t bytes = 0;      // from each rank to each of the others
};

constexpr bool agree(const Call& one, const Call& other) {
  return one.verb == other.verb && one.bytes == other.bytes;
}

// One rank's side of a step. Rank r gets `call.bytes` at given_to(r); what r gives goes to
// taken_from(r). Places to give from and to take to do not overlap. Nothing is done with this
// rank's own bytes.
struct Trade {
  Call call;
  const std::byte* give = nullptr;
  uint64_t give_stride = 0;  // bytes from one rank's to the next one's; 0: all get the same
  std::byte* take = nullptr;
  uint64_t take_stride = 0;
  int without_place = std::numeric_limits<int>::max();  // the rank that `take` has no place for
  bool moves =
      true;  // false: the ranks meet and agree on the call, and the bytes stay where they are

  uint64_t moved_bytes() const { return moves ? call.bytes : 0; }
  const std::byte* given_to(int rank) const { return give + rank * give_stride; }
  std::byte* taken_from(int rank) const {
    return take + (rank - (rank > without_place ? 1 : 0)) * take_stride;
  }
};

// One rank's connection to the others. Constructed collectively; destroying it tells the others
// that this rank has left, after which only those that still need it fail.
class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string description() const = 0;

  // Returns when all bytes are taken and given: nobody reads this rank's any more. On one thread at
  // a time. Throws CommError naming the rank that was lost, or that made another call; from then
  // on every rank's trades throw the same.
  virtual void trade(const Trade& trade) = 0;

  // Throws CommError when the run has failed. Any thread.
  virtual void check() const = 0;

  // See Communicator::abort().
  virtual void abort(std::string_view reason) noexcept = 0;
};

}  // namespace strata::engine
