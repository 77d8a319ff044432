// Training state's arithmetic on a GPU: one thread block a codec block, or a grain.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "kernels/device/cuda_error.cuh"
#include "kernels/ops/cuda/state_blocks.h"
#include "kernels/ops/optimizer_checks.h"
#include "kernels/ops/state_ops.h"

namespace strata::ops {
namespace {

constexpr int kThreads = 256;
static_assert(kThreads == kCodecBlockNumel && kThreads % 32 == 0);
// Blocks of work are dealt out to this many thread blocks at most: several for each multiprocessor,
// and a size that no launch refuses.
constexpr int64_t kMostThreadBlocks = int64_t{1} << 20;

// Keeps one value a thread where a phase has at most one element a thread.
class ThreadBlock {
 public:
  static constexpr int kSlots = 1;

  __device__ explicit ThreadBlock(uint32_t* shared) : shared_(shared) {}

  template <class Body>
  __device__ void each(int64_t n, const Body& body) {
    for (int64_t i = threadIdx.x; i < n; i += kThreads) body(i, 0);
    __syncthreads();
  }

  __device__ uint32_t largest(const uint32_t (&values)[kSlots]) {
    const uint32_t of_warp = __reduce_max_sync(0xffff'ffff, values[0]);
    if (threadIdx.x % 32 == 0) shared_[threadIdx.x / 32] = of_warp;
    __syncthreads();
    uint32_t of_all = 0;
    for (int warp = 0; warp < kThreads / 32; ++warp) of_all = max(of_all, shared_[warp]);
    __syncthreads();  // before shared_ is written again
    return of_all;
  }

 private:
  uint32_t* const shared_;  // kThreads / 32
};

template <class Rule>
__global__ void __launch_bounds__(kThreads)
    update_kernel(Rule rule, float grad_scale, uint64_t step, EncodedSpans spans) {
  __shared__ uint32_t shared[kThreads / 32];
  ThreadBlock team(shared);
  const int64_t stride = int64_t{gridDim.x} * kCodecBlockNumel;
  for (int64_t begin = spans.begin + int64_t{blockIdx.x} * kCodecBlockNumel; begin < spans.end;
       begin += stride) {
    exact::update_block(team, rule, grad_scale, step, spans, begin);
  }
}

__global__ void __launch_bounds__(kThreads) land_kernel(LandGradientSpans spans) {
  __shared__ uint32_t shared[kThreads / 32];
  __shared__ float landed[kGrainNumel];
  __shared__ double lanes[exact::kSumLanes];
  ThreadBlock team(shared);
  for (int64_t grain = blockIdx.x; grain < spans.numel / kGrainNumel; grain += gridDim.x) {
    exact::land_grain(team, spans, grain, landed, lanes);
  }
}

unsigned thread_blocks(int64_t blocks) {
  return static_cast<unsigned>(std::min(blocks, kMostThreadBlocks));
}

cudaStream_t stream_of(Queue& queue) { return static_cast<cudaStream_t>(queue.native_handle()); }

class CudaStateOps final : public StateOps {
 public:
  void optimizer_update(Queue& queue, const OptimizerScalars& scalars,
                        const EncodedSpans& spans) override {
    check_update(scalars, spans);
    if (spans.begin >= spans.end || queue.failed()) return;
    const unsigned blocks =
        thread_blocks((spans.end - spans.begin + kCodecBlockNumel - 1) / kCodecBlockNumel);
    exact::with_rule(scalars, [&](const auto& rule) {
      update_kernel<<<blocks, kThreads, 0, stream_of(queue)>>>(
          rule, static_cast<float>(scalars.grad_scale), scalars.step, spans);
    });
    check_cuda(cudaGetLastError(), "launching the optimizer's update");
  }

  void land_gradient(Queue& queue, const LandGradientSpans& spans) override {
    check_landing(spans);
    if (spans.numel == 0 || queue.failed()) return;
    const unsigned blocks = thread_blocks(spans.numel / kGrainNumel);
    land_kernel<<<blocks, kThreads, 0, stream_of(queue)>>>(spans);
    check_cuda(cudaGetLastError(), "launching a gradient's landing");
  }
};

}  // namespace

std::unique_ptr<StateOps> make_cuda_state_ops() { return std::make_unique<CudaStateOps>(); }

}  // namespace strata::ops
