#include "kernels/ops/cuda/scan_ids.cuh"

#include <limits>
#include <new>

#include "kernels/ops/cuda/block-inl.cuh"
#include "kernels/ops/cuda/launch-inl.cuh"

namespace strata::ops::cuda {
namespace {

constexpr int kThreads = 1024;

struct Found {
  int64_t first_outside;
  int64_t count;
};

// One block: even a million ids are a thousand a thread.
__global__ void __launch_bounds__(kThreads) scan(const IdScan scan) {
  Found own{scan.rows, 0};
  for (int64_t row = threadIdx.x; row < scan.rows; row += kThreads) {
    const int32_t id = scan.ids[row];
    if (id >= 0) ++own.count;
    const bool inside = id >= scan.lowest && id < scan.end;
    if (!inside && row < own.first_outside) own.first_outside = row;
  }
  const Found all = block_reduce<kThreads>(own, [](const Found& a, const Found& b) {
    return Found{a.first_outside < b.first_outside ? a.first_outside : b.first_outside,
                 a.count + b.count};
  });
  if (threadIdx.x != 0) return;
  const bool outside = all.first_outside < scan.rows;
  scan.verdict->row = outside ? all.first_outside : -1;
  scan.verdict->id = outside ? scan.ids[all.first_outside] : 0;
  if (scan.count != nullptr) *scan.count = all.count;
}

}  // namespace

PinnedVerdict::PinnedVerdict() {
  void* memory = nullptr;
  check_cuda(cudaHostAlloc(&memory, sizeof(Verdict), cudaHostAllocMapped),
             "allocating pinned memory");
  verdict_.reset(new (memory) Verdict());
}

void scan_ids(const IdScan& what, cudaStream_t stream) {
  launch(&scan, {.blocks = 1, .threads = kThreads, .stream = stream}, what);
}

}  // namespace strata::ops::cuda
