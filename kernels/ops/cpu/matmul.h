// Matrix products on oneDNN, prepared once a shape.
//
// All matrices are dense and row-major: oneDNN has its fast (brgemm) kernels for those alone, and
// falls back to one that allocates as it runs for rows that lie further apart. Measured on two Zen
// 4 cores with AVX512-BF16 at the shapes of a GPT-2 of 10.8M parameters, they reach 85 to 95 % of
// the machine's peak in bf16, so that weights are not reordered to a blocked layout beforehand.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "strata/dtype.h"

namespace strata::ops::cpu {

// out (m, n) = op(a) . op(b) (+ bias) (+ residual) (+ out). Sums are fp32; out is rounded once.
struct MatmulSpec {
  int64_t m = 0;
  int64_t k = 0;
  int64_t n = 0;
  DType dtype = DType::fp32;  // of a, b and bias
  DType out_dtype = DType::fp32;
  bool transpose_a = false;  // a lies as (k, m)
  bool transpose_b = false;  // b lies as (n, k)
  bool add_bias = false;     // bias (n)
  // At most one of these two.
  bool add_residual = false;  // residual (m, n) of out_dtype, not out itself
  bool accumulate = false;    // to what out holds
  // Computes on the calling thread alone, for use inside parallel_for; otherwise on the threads
  // that the TeamScope in force gave to OpenMP libraries when the product was prepared.
  bool alone = false;

  auto operator<=>(const MatmulSpec&) const = default;
};

struct MatmulBuffers {
  const void* a = nullptr;
  const void* b = nullptr;
  void* out = nullptr;
  void* scratch = nullptr;  // scratch_bytes(), aligned to 64 bytes
  const void* bias = nullptr;
  const void* residual = nullptr;
};

class Matmul {
 public:
  virtual ~Matmul() = default;
  virtual size_t scratch_bytes() const = 0;
  // Calls with different slots may run at the same time. Slots count from 0.
  virtual void run(const MatmulBuffers& buffers, int slot) = 0;
};

// Owns prepared products. Preparing allocates and takes about a millisecond; running one allocates
// nothing but what oneDNN itself takes for its argument list: a small block an argument and two or
// three more, which its interface offers no way around.
// Not thread-safe, but for Matmul::run as said. Throws DeviceError with oneDNN's own words.
class MatmulCache {
 public:
  explicit MatmulCache(int slots);
  ~MatmulCache();

  Matmul& get(const MatmulSpec& spec);
  // What get(spec).scratch_bytes() would be, without preparing it.
  size_t scratch_bytes(const MatmulSpec& spec) const;
  // What matrices of `dtype` are multiplied in: fp32 for fp16, and for bf16 on a CPU without its
  // instructions.
  DType product_dtype(DType dtype) const;

 private:
  struct Library;

  std::unique_ptr<Library> library_;
  std::map<MatmulSpec, std::unique_ptr<Matmul>> matmuls_;
};

}  // namespace strata::ops::cpu
