// What people read when a peer is lost: one line, bounded, whatever it is made of.
#include "engine/comm/failure_text.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace strata::engine {
namespace {

constexpr Call kCall = {Verb::all_gather, "gather", 8};

TEST(FailureText, NamesWhoIsMissing) {
  EXPECT_EQ(stalled_text(std::vector{1}, kCall, 600),
            "rank 1 did not come to all_gather (gather) within 600 s");
  EXPECT_EQ(stalled_text(std::vector{1, 3}, kCall, 0.5),
            "ranks 1 and 3 did not come to all_gather (gather) within 0.5 s");
  EXPECT_EQ(stalled_text(std::vector{1, 3, 4}, {Verb::exchange}, 2),
            "ranks 1, 3 and 4 did not come to exchange within 2 s");
}

TEST(FailureText, CountsThoseItHasNoRoomFor) {
  std::vector<int> missing(1000);
  std::iota(missing.begin(), missing.end(), 0);
  EXPECT_EQ(stalled_text(missing, {Verb::exchange}, 2),
            "ranks 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 and 984 more did not come "
            "to exchange within 2 s");
}

TEST(FailureText, ADisagreementReadsTheSameFromBothSides) {
  const CallOf one = {0, kCall};
  const CallOf other = {2, {Verb::exchange, "", 4}};
  EXPECT_EQ(mismatch_text(one, other),
            "ranks 0 and 2 disagree: all_gather (gather) of 8 bytes against exchange of 4 bytes");
  EXPECT_EQ(mismatch_text(other, one), mismatch_text(one, other));
}

TEST(FailureText, IsOneLine) {
  EXPECT_EQ(failed_text(1, "one\ntwo\r\x1b[0m\t\x7f."), "rank 1 failed: one two  [0m  .");
}

TEST(FailureText, IsCutBetweenCharacters) {
  for (int shift = 0; shift < 3; ++shift) {
    std::string reason(shift, 'x');
    while (reason.size() < 2 * kMaxFailureBytes) reason += "\xe2\x82\xac";  // a euro sign
    const std::string text = failed_text(7, reason);
    EXPECT_LE(text.size(), kMaxFailureBytes);
    EXPECT_GT(text.size(), kMaxFailureBytes - 100);
    EXPECT_EQ(text.substr(text.size() - 6), "\xe2\x82\xac...");
  }
}

}  // namespace
}  // namespace strata::engine
