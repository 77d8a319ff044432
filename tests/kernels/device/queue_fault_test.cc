#include "kernels/device/queue_fault.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace strata {
namespace {

std::exception_ptr number(int value) { return std::make_exception_ptr(value); }

int thrown_at(const QueueFault& fault, uint64_t point) {
  try {
    fault.throw_if_behind(point);
  } catch (int value) {
    return value;
  }
  return 0;
}

TEST(QueueFault, NothingHappensUntilItIsSet) {
  const QueueFault fault;
  EXPECT_FALSE(fault.happened());
  EXPECT_EQ(thrown_at(fault, 0), 0);
  EXPECT_EQ(thrown_at(fault, 1'000'000), 0);
}

TEST(QueueFault, ShowsFromItsPointOn) {
  QueueFault fault;
  fault.set(5, number(1));
  EXPECT_TRUE(fault.happened());
  EXPECT_EQ(thrown_at(fault, 4), 0);
  EXPECT_EQ(thrown_at(fault, 5), 1);
  EXPECT_EQ(thrown_at(fault, 6), 1);
}

TEST(QueueFault, TheEarliestInQueueOrderStaysWhicheverIsSetFirst) {
  QueueFault fault;
  fault.set(5, number(1));
  fault.set(7, number(2));
  fault.set(5, number(3));
  EXPECT_EQ(thrown_at(fault, 9), 1);
  fault.set(3, number(4));
  EXPECT_EQ(thrown_at(fault, 3), 4);
  EXPECT_EQ(thrown_at(fault, 9), 4);
}

}  // namespace
}  // namespace strata
