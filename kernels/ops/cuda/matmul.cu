#include "kernels/ops/cuda/matmul.cuh"

#include <algorithm>

#include "kernels/device/cuda_error.cuh"

namespace strata::ops::cuda {
namespace {

// What cuBLAS takes by itself on each.
constexpr size_t kHopperWorkspaceBytes = size_t{32} << 20;
constexpr size_t kOtherWorkspaceBytes = size_t{8} << 20;

cudaDataType_t cuda_type(DType dtype) {
  return dtype == DType::bf16 ? CUDA_R_16BF : dtype == DType::fp16 ? CUDA_R_16F : CUDA_R_32F;
}

// More than 16 bytes makes no kernel faster, and would make bits depend on more of the address.
uint32_t alignment_of(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  return address % 16 == 0 ? 16 : static_cast<uint32_t>(address & -address);
}

struct DestroyLayout {
  void operator()(cublasLtMatrixLayout_t layout) const {
    CublasLt::library().destroy_layout(layout);
  }
};
struct DestroyOperation {
  void operator()(cublasLtMatmulDesc_t operation) const {
    CublasLt::library().destroy_operation(operation);
  }
};
struct DestroyPreference {
  void operator()(cublasLtMatmulPreference_t preference) const {
    CublasLt::library().destroy_preference(preference);
  }
};
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, DestroyLayout>;
using Operation = std::unique_ptr<cublasLtMatmulDescOpaque_t, DestroyOperation>;
using Preference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, DestroyPreference>;

// cuBLAS is column-major: to it, a row-major (rows, columns) is a (columns, rows).
Layout make_layout(DType dtype, int64_t rows, int64_t columns) {
  cublasLtMatrixLayout_t layout = nullptr;
  check_cublas(
      CublasLt::library().create_layout(&layout, cuda_type(dtype), static_cast<uint64_t>(columns),
                                        static_cast<uint64_t>(rows), columns),
      "describing a matrix");
  return Layout(layout);
}

template <typename Value>
void set(const Operation& operation, cublasLtMatmulDescAttributes_t attribute, Value value) {
  check_cublas(CublasLt::library().set_operation(operation.get(), attribute, &value, sizeof(value)),
               "describing a product");
}

template <typename Value>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute,
         Value value) {
  check_cublas(
      CublasLt::library().set_preference(preference.get(), attribute, &value, sizeof(value)),
      "asking for an algorithm");
}

// out^T = b^T . a^T, so that row-major matrices are column-major ones: cuBLAS's first operand is b.
Operation make_operation(const MatmulShape& shape, const void* bias) {
  cublasLtMatmulDesc_t created = nullptr;
  check_cublas(CublasLt::library().create_operation(&created, CUBLAS_COMPUTE_32F, CUDA_R_32F),
               "describing a product");
  Operation operation(created);
  set(operation, CUBLASLT_MATMUL_DESC_TRANSA, shape.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(operation, CUBLASLT_MATMUL_DESC_TRANSB, shape.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (bias != nullptr) {
    set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  }
  return operation;
}

}  // namespace

struct MatmulCache::Prepared {
  Layout a, b, out;
  Operation operation;
  bool has_algorithm = false;
  cublasLtMatmulAlgo_t algorithm = {};
};

MatmulCache::MatmulCache() {
  cublasLtHandle_t handle = nullptr;
  check_cublas(CublasLt::library().create(&handle), "starting cuBLASLt");
  handle_.reset(handle);
  int device = 0, major = 0;
  check_cuda(cudaGetDevice(&device), "asking for the device");
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
             "asking for a device's capability");
  workspace_bytes_ = major >= 9 ? kHopperWorkspaceBytes : kOtherWorkspaceBytes;
}

MatmulCache::~MatmulCache() = default;

std::unique_ptr<MatmulCache::Prepared> MatmulCache::prepare(const Key& key,
                                                            const MatmulArgs& args) const {
  const MatmulShape& shape = key.shape;
  auto prepared = std::make_unique<Prepared>();
  prepared->a = shape.transpose_a ? make_layout(shape.dtype, shape.k, shape.m)
                                  : make_layout(shape.dtype, shape.m, shape.k);
  prepared->b = shape.transpose_b ? make_layout(shape.dtype, shape.n, shape.k)
                                  : make_layout(shape.dtype, shape.k, shape.n);
  prepared->out = make_layout(shape.dtype, shape.m, shape.n);
  prepared->operation = make_operation(shape, args.bias);

  cublasLtMatmulPreference_t created = nullptr;
  check_cublas(CublasLt::library().create_preference(&created), "asking for an algorithm");
  const Preference preference(created);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{workspace_bytes_});
  // Parts of a sum are added in fp32, in order: neither in the output's dtype nor as they come.
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.b_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.a_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.add_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.out_alignment);

  cublasLtMatmulHeuristicResult_t result = {};
  int found = 0;
  const cublasStatus_t status = CublasLt::library().choose(
      handle_.get(), prepared->operation.get(), prepared->b.get(), prepared->a.get(),
      prepared->out.get(), prepared->out.get(), preference.get(), 1, &result, &found);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) check_cublas(status, "asking for an algorithm");
  prepared->has_algorithm = status == CUBLAS_STATUS_SUCCESS && found > 0;
  prepared->algorithm = result.algo;
  return prepared;
}

void MatmulCache::run(const MatmulShape& shape, const MatmulArgs& args, cudaStream_t stream) {
  if (shape.m == 0 || shape.n == 0) return;
  const void* add = args.add == nullptr ? args.out : args.add;
  const Key key{.shape = shape,
                .bias = args.bias != nullptr,
                .add = args.add != nullptr,
                .a_alignment = alignment_of(args.a),
                .b_alignment = alignment_of(args.b),
                .add_alignment = alignment_of(add),
                .out_alignment = std::min(alignment_of(args.out), alignment_of(args.bias))};
  std::unique_ptr<Prepared>& prepared = prepared_[key];
  if (prepared == nullptr) prepared = prepare(key, args);
  if (!prepared->has_algorithm) return multiply_plain(shape, args, stream);

  const float alpha = 1, beta = args.add == nullptr ? 0 : 1;
  if (args.bias != nullptr) {
    set(prepared->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, args.bias);
  }
  check_cublas(
      CublasLt::library().matmul(handle_.get(), prepared->operation.get(), &alpha, args.b,
                                 prepared->b.get(), args.a, prepared->a.get(), &beta, add,
                                 prepared->out.get(), args.out, prepared->out.get(),
                                 &prepared->algorithm, args.workspace, workspace_bytes_, stream),
      "multiplying matrices");
}

}  // namespace strata::ops::cuda
