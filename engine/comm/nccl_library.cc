#include <dlfcn.h>
#include <fmt/format.h>
#include <nccl.h>

#include <memory>
#include <string>

#include "engine/comm/libraries.h"

namespace strata::engine {

std::string nccl_library() {
  const std::unique_ptr<void, int (*)(void*)> library(dlopen("libnccl.so.2", RTLD_NOW), &dlclose);
  if (library == nullptr) return "no NCCL (libnccl.so.2 is not on this machine)";
  const auto get_version =
      reinterpret_cast<decltype(&ncclGetVersion)>(dlsym(library.get(), "ncclGetVersion"));
  int version = 0;
  if (get_version == nullptr || get_version(&version) != ncclSuccess) {
    return "no NCCL (libnccl.so.2 does not answer)";
  }
  return fmt::format("NCCL {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace strata::engine
