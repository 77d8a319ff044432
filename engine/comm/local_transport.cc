#include "engine/comm/local_transport.h"

#include <fmt/format.h>

#include <cstring>
#include <utility>

#include "engine/comm/failure_text.h"

namespace strata::engine {
namespace {

class LocalTransport final : public Transport {
 public:
  LocalTransport(std::shared_ptr<LocalMeeting> meeting, int rank)
      : meeting_(std::move(meeting)), rank_(rank) {}
  ~LocalTransport() override { meeting_->leave(rank_); }

  int rank() const override { return rank_; }
  int size() const override { return meeting_->size(); }
  std::string description() const override {
    return size() == 1 ? "1 rank" : fmt::format("{} ranks, threads of one process", size());
  }

  void trade(const Trade& mine) override {
    meeting_->open(rank_, mine);
    const uint64_t bytes = mine.moved_bytes();
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == rank_ || bytes == 0) continue;
      std::memcpy(mine.taken_from(peer), meeting_->side_of(peer).given_to(rank_), bytes);
    }
    meeting_->close(rank_);
  }

  void check() const override { meeting_->check(); }

  void abort(std::string_view reason) noexcept override {
    meeting_->fail(failed_text(rank_, reason));
  }

 private:
  const std::shared_ptr<LocalMeeting> meeting_;
  const int rank_;
};

}  // namespace

std::unique_ptr<Transport> make_local_transport(std::shared_ptr<LocalGroup> group, int rank,
                                                const CommunicatorOptions& options) {
  auto transport =
      std::make_unique<LocalTransport>(group->next_meeting(rank, options.timeout_s), rank);
  transport->trade({.call = {.verb = Verb::make_communicator}});
  return transport;
}

}  // namespace strata::engine
