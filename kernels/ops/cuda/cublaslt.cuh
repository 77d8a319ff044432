// cuBLASLt, opened when it is first needed and never closed: a program linked with this starts on a
// machine without it. Only for files compiled with the toolkit.
#pragma once

#include <cublasLt.h>

namespace strata::ops::cuda {

struct CublasLt {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) choose;
  decltype(&cublasLtMatmulDescCreate) create_operation;
  decltype(&cublasLtMatmulDescDestroy) destroy_operation;
  decltype(&cublasLtMatmulDescSetAttribute) set_operation;
  decltype(&cublasLtMatrixLayoutCreate) create_layout;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
  decltype(&cublasLtGetStatusString) status_text;

  // Throws DeviceError where the library is not on this machine. Any thread.
  static const CublasLt& library();
};

// Throws DeviceError with the library's own text unless `status` is success.
void check_cublas(cublasStatus_t status, const char* doing);

}  // namespace strata::ops::cuda
