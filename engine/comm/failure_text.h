// How a lost peer is told: one sentence, on one line, of at most kMaxFailureBytes, the same over
// every transport.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "engine/comm/transport.h"

namespace strata::engine {

inline constexpr size_t kMaxFailureBytes = 2048;

// "rank 1 failed: <reason>", the reason on one line and cut where it is too long.
std::string failed_text(int rank, std::string_view reason);

// "rank 1 died"
std::string died_text(int rank);

// "rank 1 left the run while rank 0 waited for it in all_gather (gather)"
std::string left_text(int gone, int waiting, const Call& call);

// "ranks 1 and 3 did not come to all_gather (gather) within 600 s". Of very many ranks the first
// are named and the rest counted.
std::string stalled_text(std::span<const int> missing, const Call& call, double timeout_s);

// "ranks 0 and 1 disagree: all_gather (gather) of 8 bytes against exchange of 4 bytes"
struct CallOf {
  int rank = 0;
  Call call;
};
std::string mismatch_text(const CallOf& one, const CallOf& other);

}  // namespace strata::engine
