// CUDA's status codes as exceptions. Only for files compiled with the toolkit.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <string_view>

namespace strata {

// "launching: an illegal memory access was encountered (cudaErrorIllegalAddress)".
std::string cuda_error_text(cudaError_t status, std::string_view doing);

// Throws DeviceError with that text unless `status` is success; `doing` is a literal such as
// "creating a stream".
void check_cuda(cudaError_t status, std::string_view doing);

}  // namespace strata
