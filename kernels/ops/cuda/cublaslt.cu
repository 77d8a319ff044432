#include "kernels/ops/cuda/cublaslt.cuh"

#include <dlfcn.h>

#include <string>

#include "strata/error.h"

namespace strata::ops::cuda {
namespace {

// The version whose headers this was built with.
std::string library_name() { return "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR); }

class Opened {
 public:
  Opened() : library_(dlopen(library_name().c_str(), RTLD_NOW)) {
    if (library_ != nullptr) return;
    throw DeviceError("CUDA's layers need cuBLASLt: " + std::string(dlerror()) + ".");
  }

  template <typename Function>
  void find(const char* name, Function& function) const {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    if (function == nullptr) throw DeviceError(library_name() + " has no " + name + ".");
  }

 private:
  void* library_;
};

CublasLt open_library() {
  const Opened library;
  CublasLt found;
  library.find("cublasLtCreate", found.create);
  library.find("cublasLtDestroy", found.destroy);
  library.find("cublasLtMatmul", found.matmul);
  library.find("cublasLtMatmulAlgoGetHeuristic", found.choose);
  library.find("cublasLtMatmulDescCreate", found.create_operation);
  library.find("cublasLtMatmulDescDestroy", found.destroy_operation);
  library.find("cublasLtMatmulDescSetAttribute", found.set_operation);
  library.find("cublasLtMatrixLayoutCreate", found.create_layout);
  library.find("cublasLtMatrixLayoutDestroy", found.destroy_layout);
  library.find("cublasLtMatmulPreferenceCreate", found.create_preference);
  library.find("cublasLtMatmulPreferenceDestroy", found.destroy_preference);
  library.find("cublasLtMatmulPreferenceSetAttribute", found.set_preference);
  library.find("cublasLtGetStatusString", found.status_text);
  return found;
}

}  // namespace

const CublasLt& CublasLt::library() {
  static const CublasLt library = open_library();
  return library;
}

void check_cublas(cublasStatus_t status, const char* doing) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError(std::string(doing) + ": " + CublasLt::library().status_text(status));
}

}  // namespace strata::ops::cuda
