// A prepared product takes no memory when it runs but what oneDNN's interface cannot do without.
#include <gtest/gtest.h>

#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

#include "kernels/ops/cpu/matmul.h"
#include "tests/interposition.h"

namespace strata::ops::cpu {
namespace {

using testing_support::Acquisitions;
using testing_support::acquisitions;

std::vector<MatmulSpec> products() {
  std::vector<MatmulSpec> specs;
  for (int bits = 0; bits < 32; ++bits) {
    const auto bit = [bits](int i) { return (bits >> i & 1) != 0; };
    MatmulSpec spec{.m = 48, .k = 64, .n = 96};
    spec.dtype = bit(0) ? DType::bf16 : DType::fp32;
    spec.transpose_a = bit(1);
    spec.transpose_b = bit(2);
    spec.add_bias = bit(3);
    spec.alone = bit(4);
    specs.push_back(spec);
    spec.accumulate = true;
    specs.push_back(spec);
    spec.accumulate = false;
    spec.add_residual = true;
    specs.push_back(spec);
  }
  return specs;
}

// What oneDNN 2 allocates to run a product: a node for each argument in a map, the map, the
// scratch memory's view, and one more where something is added. Its kernels for CPUs without
// AVX-512's bf16 allocate as they run.
int64_t expected_blocks(const MatmulSpec& spec, size_t scratch_bytes) {
  const int arguments =
      3 + (scratch_bytes > 0 ? 1 : 0) + (spec.add_bias ? 1 : 0) + (spec.add_residual ? 1 : 0);
  return arguments + 2 + (spec.add_residual || spec.accumulate ? 1 : 0);
}

TEST(MatmulSteadyState, RunningTakesOnlyWhatOneDnnTakesForItsArguments) {
  ASSERT_TRUE(testing_support::count_apart("libdnnl"));
  const bool kernels_allocate = dnnl::get_effective_cpu_isa() < dnnl::cpu_isa::avx512_core_bf16;
  constexpr size_t kNumel = 64 * 96;
  std::vector<float> a(kNumel), b(kNumel), out(kNumel), residual(kNumel), bias(kNumel);
  MatmulCache cache(1);
  for (const MatmulSpec& spec : products()) {
    Matmul& product = cache.get(spec);
    std::vector<std::byte> scratch(product.scratch_bytes() + 64);
    const auto address = reinterpret_cast<uintptr_t>(scratch.data());
    const MatmulBuffers buffers = {.a = a.data(),
                                   .b = b.data(),
                                   .out = out.data(),
                                   .scratch = scratch.data() + (64 - address % 64),
                                   .bias = bias.data(),
                                   .residual = residual.data()};
    product.run(buffers, 0);
    for (int run = 0; run < 3; ++run) {
      const Acquisitions before = acquisitions();
      product.run(buffers, 0);
      Acquisitions taken = acquisitions() - before;
      if (!kernels_allocate) {
        EXPECT_EQ(taken.apart, expected_blocks(spec, product.scratch_bytes()))
            << name(spec.dtype) << " bias " << spec.add_bias << " residual " << spec.add_residual
            << " accumulate " << spec.accumulate << " alone " << spec.alone;
      }
      taken.apart = 0;
      EXPECT_EQ(taken, Acquisitions{});
    }
  }
}

}  // namespace
}  // namespace strata::ops::cpu
