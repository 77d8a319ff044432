#include "engine/comm/peer_transport.h"

#include <cstring>

#include "engine/comm/deadline.h"
#include "engine/comm/failure_text.h"
#include "strata/clock.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

CallMessage message_of(const Call& call) {
  CallMessage message = {.verb = call.verb, .bytes = call.bytes};
  std::strncpy(message.label.data(), call.label, message.label.size() - 1);
  return message;
}

}  // namespace

void PeerTransport::trade(const Trade& trade) {
  ++trades_;
  try {
    if (watch_) watch_->check();  // what came before may be complete without the lost peer
    begin(trade);
    finish(trade);
  } catch (const CommError& error) {
    give_up();
    if (!watch_) throw;
    watch_->fail(error.what());
    watch_->check();  // throws: this failure, or one that came before it
  }
}

void PeerTransport::abort(std::string_view reason) noexcept {
  watch_->fail(failed_text(rank(), reason));
}

void PeerTransport::require_agreement(int peer, const CallMessage& theirs) const {
  if (agree(message_.call(), theirs.call())) return;
  throw CommError(mismatch_text({rank(), message_.call()}, {peer, theirs.call()}));
}

void PeerTransport::begin(const Trade& trade) {
  message_ = message_of(trade.call);
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank()) start(peer, message_, trade);
  }
}

void PeerTransport::finish(const Trade& trade) {
  int64_t moved_ns = now_ns();
  int64_t deadline_ns = deadline_ns_after(timeout_s_);
  for (;;) {
    const bool moved = advance_all();
    if (all_done()) return;
    if (watch_) throw_if_lost(trade.call);
    const int64_t at_ns = now_ns();
    if (moved) {
      moved_ns = at_ns;
      deadline_ns = deadline_ns_after(timeout_s_);
    } else if (at_ns < deadline_ns) {
      pause(at_ns - moved_ns);
    } else {
      throw CommError(stalled_text(missing(), trade.call, timeout_s_));
    }
  }
}

bool PeerTransport::advance_all() {
  bool moved = false;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank()) moved |= advance(peer);
  }
  return moved;
}

bool PeerTransport::all_done() const {
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank() && !done(peer)) return false;
  }
  return true;
}

std::vector<int> PeerTransport::missing() const {
  std::vector<int> ranks;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank() && !done(peer)) ranks.push_back(peer);
  }
  return ranks;
}

void PeerTransport::throw_if_lost(const Call& call) const {
  watch_->check();
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank() || done(peer) || !watch_->left_before(peer, trades_)) continue;
    throw CommError(left_text(peer, rank(), call));
  }
}

}  // namespace strata::engine
