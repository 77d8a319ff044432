#include "kernels/device/backends.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/device/cuda_device.h"
#include "strata/error.h"

namespace strata {
namespace {

using testing::HasSubstr;

TEST(Backends, TheDescriptionNamesWhatWasBuiltIn) {
  const std::string line = backends_description();
  EXPECT_THAT(line, HasSubstr("parallel_for on " + std::string(parallel_backend())));
  EXPECT_THAT(line, HasSubstr(cuda_backend().empty() ? "no CUDA" : cuda_backend()));
  EXPECT_EQ(line.find('\n'), std::string::npos);
}

TEST(Backends, AnUnusableCudaSaysWhyAndTheDeviceRefusesWithTheSameWords) {
  const std::string reason = cuda_unavailable_reason();
  if (reason.empty()) GTEST_SKIP() << "CUDA can be used here";
  NullTrafficSink sink;
  try {
    make_cuda_device({.ordinal = 0, .cap_bytes = 1}, sink);
    FAIL() << "a device was made";
  } catch (const DeviceError& error) {
    EXPECT_THAT(error.what(), HasSubstr(reason));
  }
  EXPECT_THAT(backends_description(), HasSubstr(cuda_backend().empty() ? "no CUDA" : reason));
}

TEST(Backends, ACudaDeviceThatDoesNotExistIsRefused) {
  if (!cuda_unavailable_reason().empty()) GTEST_SKIP() << cuda_unavailable_reason();
  NullTrafficSink sink;
  EXPECT_THROW(make_cuda_device({.ordinal = 1000, .cap_bytes = 1}, sink), DeviceError);
}

}  // namespace
}  // namespace strata
