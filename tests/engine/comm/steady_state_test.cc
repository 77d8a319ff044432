// Between threads of one process the verbs take nothing from the system.
#include <gtest/gtest.h>

#include <barrier>
#include <vector>

#include "kernels/device/host_device.h"
#include "strata/grain.h"
#include "tests/engine/comm/ranks.h"
#include "tests/interposition.h"

namespace strata {
namespace {

class CommunicatorSteadyState : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Transports, CommunicatorSteadyState, testing::Bool(),
                         [](const auto& test) { return test.param ? "tcp" : "local"; });

TEST_P(CommunicatorSteadyState, VerbsTakeNothing) {
  constexpr int kRanks = 3;
  constexpr int64_t kShard = 2 * kGrainNumel;
  NullTrafficSink sink;
  std::barrier all_here(kRanks);
  testing_support::on_every_rank(
      {.size = kRanks, .tcp = GetParam()}, [&](testing_support::Rank& rank) {
        const auto queue = make_host_queue({.name = "quiet"}, {}, sink);
        const auto communicator =
            engine::make_communicator(rank.world, *queue, *rank.ops, {}, sink);
        std::vector<float> flat(kRanks * kShard, 1.0f);
        std::vector<float> out(kShard);
        std::vector<std::byte> scratch(kRanks * kGrainNumel * sizeof(float));
        std::array<std::byte, 8> mine = {};
        std::array<std::byte, 8 * kRanks> all = {};
        const auto step = [&] {
          communicator->all_gather(reinterpret_cast<std::byte*>(flat.data()),
                                   kShard * sizeof(float), {});
          communicator->reduce_scatter({flat.data(), DType::fp32, out.data(), kShard, scratch}, {});
          communicator->exchange(mine, all);
        };
        step();
        all_here.arrive_and_wait();
        const auto before = testing_support::acquisitions();
        all_here.arrive_and_wait();
        for (int i = 0; i < 100; ++i) step();
        all_here.arrive_and_wait();
        EXPECT_EQ(testing_support::acquisitions(), before);
        all_here.arrive_and_wait();
      });
}

}  // namespace
}  // namespace strata
