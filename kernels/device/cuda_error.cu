#include "kernels/device/cuda_error.cuh"
#include "strata/error.h"

namespace strata {

std::string cuda_error_text(cudaError_t status, std::string_view doing) {
  std::string text(doing);
  text += ": ";
  text += cudaGetErrorString(status);
  text += " (";
  text += cudaGetErrorName(status);
  return text + ")";
}

void check_cuda(cudaError_t status, std::string_view doing) {
  if (status == cudaSuccess) return;
  // Also cleared from the thread's last error, where the next launch would find it again.
  cudaGetLastError();
  throw DeviceError(cuda_error_text(status, doing));
}

}  // namespace strata
