#include "kernels/device/backends.h"

#include "kernels/device/cuda_device.h"

namespace strata {

std::string backends_description() {
  std::string line = "parallel_for on " + std::string(parallel_backend());
  if (cuda_backend().empty()) return line + ", no CUDA";
  line += ", " + cuda_backend();
  const std::string reason = cuda_unavailable_reason();
  return reason.empty() ? line : line + " (" + reason + ")";
}

}  // namespace strata
