// Matrix products on the GPU, row-major: out (m, n) = a (m, k) . b (k, n) + bias + add, summed in
// fp32 and rounded once. Only for files compiled with the toolkit.
//
// cuBLASLt multiplies, with the algorithm that its heuristic names first for the shape; shapes that
// it has none for go to a plain kernel. Sums that it splits are added in fp32 in a fixed order: the
// same bits for the same shape and alignment on the same GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "kernels/ops/cuda/cublaslt.cuh"
#include "strata/dtype.h"

namespace strata::ops::cuda {

struct MatmulShape {
  int64_t m = 0;
  int64_t k = 0;
  int64_t n = 0;
  DType dtype = DType::fp32;
  bool transpose_a = false;  // a is (k, m)
  bool transpose_b = false;  // b is (n, k)

  auto operator<=>(const MatmulShape&) const = default;
};

struct MatmulArgs {
  const void* a = nullptr;
  const void* b = nullptr;
  const void* bias = nullptr;  // (n); null: none
  const void* add = nullptr;   // (m, n), may be `out`; null: none
  void* out = nullptr;
  void* workspace = nullptr;  // MatmulCache::workspace_bytes
};

// What is prepared for shapes that were seen. Not thread-safe.
class MatmulCache {
 public:
  // For the current CUDA device. Throws DeviceError where cuBLASLt is not on this machine.
  MatmulCache();
  ~MatmulCache();

  void run(const MatmulShape& shape, const MatmulArgs& args, cudaStream_t stream);
  size_t workspace_bytes() const { return workspace_bytes_; }

 private:
  struct Prepared;
  // What an algorithm is chosen by. Alignments are powers of two up to 16 bytes.
  struct Key {
    MatmulShape shape;
    bool bias = false;
    bool add = false;
    uint32_t a_alignment = 0;
    uint32_t b_alignment = 0;
    uint32_t add_alignment = 0;
    uint32_t out_alignment = 0;  // the bias's too

    auto operator<=>(const Key&) const = default;
  };
  struct DestroyHandle {
    void operator()(cublasLtHandle_t handle) const { CublasLt::library().destroy(handle); }
  };

  std::unique_ptr<Prepared> prepare(const Key& key, const MatmulArgs& args) const;

  std::unique_ptr<cublasLtContext, DestroyHandle> handle_;
  size_t workspace_bytes_;
  std::map<Key, std::unique_ptr<Prepared>> prepared_;
};

// The same by a kernel that leans on no library and no alignment. Slow.
void multiply_plain(const MatmulShape& shape, const MatmulArgs& args, cudaStream_t stream);

}  // namespace strata::ops::cuda
