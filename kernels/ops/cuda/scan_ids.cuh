// Whether numbers of tokens or classes lie in a vocabulary, found out on the GPU and told on the
// host. Only for files compiled with the toolkit.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

namespace strata::ops::cuda {

// The first row that is outside.
struct Verdict {
  int64_t row = -1;  // none
  int32_t id = 0;
};

// Pinned memory that kernels write a verdict to, and a host task behind them on the same stream
// reads. The next kernel on the stream may write it again.
class PinnedVerdict {
 public:
  // On the current CUDA device. Throws DeviceError.
  PinnedVerdict();

  Verdict* get() const { return verdict_.get(); }

 private:
  struct FreePinned {
    void operator()(Verdict* verdict) const { cudaFreeHost(verdict); }
  };

  std::unique_ptr<Verdict, FreePinned> verdict_;
};

// Rows of ids, each in [lowest, end); negative ones do not count.
struct IdScan {
  const int32_t* ids = nullptr;
  int64_t rows = 0;
  int32_t lowest = 0;
  int64_t end = 0;
  Verdict* verdict = nullptr;  // pinned
  int64_t* count = nullptr;    // in device memory: how many count; null: not wanted
};
void scan_ids(const IdScan& scan, cudaStream_t stream);

}  // namespace strata::ops::cuda
