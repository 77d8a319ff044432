// Memory comes from the NUMA nodes that it is to come from, and nothing else changes where there
// are none to choose from.
#include "kernels/device/page_spread.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/device/host_device.h"
#include "kernels/device/host_memory.h"
#include "strata/traffic.h"

namespace strata {
namespace {

struct Policy {
  hwloc_membind_policy_t kind = HWLOC_MEMBIND_DEFAULT;
  bool of_node_0 = false;
};

Policy policy_of(const void* data, size_t bytes) {
  const HwlocTopology topology = load_topology();
  const HwlocBitmap nodes(hwloc_bitmap_alloc());
  Policy policy;
  EXPECT_EQ(hwloc_get_area_membind(topology.get(), data, bytes, nodes.get(), &policy.kind,
                                   HWLOC_MEMBIND_BYNODESET),
            0);
  policy.of_node_0 = hwloc_bitmap_isset(nodes.get(), 0) != 0;
  return policy;
}

bool is_the_kernels(const Policy& policy) {
  return policy.kind == HWLOC_MEMBIND_DEFAULT || policy.kind == HWLOC_MEMBIND_FIRSTTOUCH;
}

// Whether the kernel takes hints for an area's memory at all; some containers forbid them.
bool takes_hints() {
  const HwlocTopology topology = load_topology();
  const HwlocBitmap node(hwloc_bitmap_alloc());
  hwloc_bitmap_only(node.get(), 0);
  void* const data = map_resident(kPageBytes);
  const bool taken = hwloc_set_area_membind(topology.get(), data, kPageBytes, node.get(),
                                            HWLOC_MEMBIND_BIND, HWLOC_MEMBIND_BYNODESET) == 0;
  unmap_resident(data, kPageBytes);
  return taken;
}

class PageSpreadTest : public testing::TestWithParam<size_t> {};
INSTANTIATE_TEST_SUITE_P(Bytes, PageSpreadTest,
                         testing::Values(1, kHugePageBytes, 3 * kHugePageBytes + 5));

TEST_P(PageSpreadTest, MemoryIsOfTheNodesThatAreNamed) {
  if (!takes_hints()) GTEST_SKIP() << "the kernel takes no hints here";
  const size_t bytes = GetParam();
  NullTrafficSink traffic;
  HostDeviceOptions options;
  options.memory_nodes = {0};
  const auto device = make_host_device(options, traffic);
  for (const MemoryBlock& block : {device->allocate(bytes), device->allocate_pinned(bytes)}) {
    const Policy policy = policy_of(block.data(), bytes);
    EXPECT_EQ(policy.kind, HWLOC_MEMBIND_INTERLEAVE);
    EXPECT_TRUE(policy.of_node_0);
  }
}

TEST_P(PageSpreadTest, WithoutNodesTheKernelChooses) {
  if (!takes_hints()) GTEST_SKIP() << "the kernel takes no hints here";
  const PageSpread none({});
  void* const data = map_resident(GetParam(), &none);
  EXPECT_TRUE(is_the_kernels(policy_of(data, GetParam())));
  unmap_resident(data, GetParam());
}

// As under numactl: it is the thread's, and none of the area's own is put over it.
TEST_P(PageSpreadTest, APolicyFromOutsideStays) {
  const HwlocTopology topology = load_topology();
  const HwlocBitmap node(hwloc_bitmap_alloc());
  hwloc_bitmap_only(node.get(), 0);
  const int flags = HWLOC_MEMBIND_THREAD | HWLOC_MEMBIND_BYNODESET;
  if (hwloc_set_membind(topology.get(), node.get(), HWLOC_MEMBIND_BIND, flags) != 0) {
    GTEST_SKIP() << "the kernel takes no hints here";
  }
  const PageSpread spread({0});
  void* const data = map_resident(GetParam(), &spread);
  EXPECT_TRUE(is_the_kernels(policy_of(data, GetParam())));
  unmap_resident(data, GetParam());
  hwloc_set_membind(topology.get(), node.get(), HWLOC_MEMBIND_DEFAULT, flags);
}

}  // namespace
}  // namespace strata
