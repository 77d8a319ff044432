#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/isa.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::HWY_NAMESPACE {
int64_t compiled_target() { return HWY_TARGET; }
}  // namespace strata::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <array>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/ops/optimizer_ops.h"
#include "strata/error.h"

namespace strata::ops {
namespace {

HWY_EXPORT(compiled_target);

struct Isa {
  int64_t target;
  std::string_view name;
};

// Best first on each architecture. Highway has two targets that need nothing of the machine and
// compiles one of them, depending on the compiler.
constexpr std::array<Isa, 11> kIsas = {{{HWY_AVX3_DL, "avx512_dl"},
                                        {HWY_AVX3, "avx512"},
                                        {HWY_AVX2, "avx2"},
                                        {HWY_SSE4, "sse4"},
                                        {HWY_SSSE3, "ssse3"},
                                        {HWY_NEON, "neon"},
                                        {HWY_PPC8, "ppc8"},
                                        {HWY_WASM_EMU256, "wasm256"},
                                        {HWY_WASM, "wasm"},
                                        {HWY_EMU128, "scalar"},
                                        {HWY_SCALAR, "scalar"}}};

constinit hwy::ChosenTarget chosen;

std::vector<Isa> available() {
  const int64_t targets = (hwy::SupportedTargets() & HWY_TARGETS) | HWY_STATIC_TARGET;
  std::vector<Isa> found;
  for (const Isa& isa : kIsas) {
    if ((isa.target & targets) != 0) found.push_back(isa);
  }
  return found;
}

int64_t find_target(std::string_view wanted) {
  std::string names;
  for (const Isa& isa : available()) {
    if (wanted.empty() || wanted == isa.name) return isa.target;
    names.append(names.empty() ? "" : ", ").append(isa.name);
  }
  throw ConfigError("STRATA_FORCE_ISA: \"" + std::string(wanted) +
                    "\" is not available; this machine and build have " + names + ".");
}

std::string_view environment_isa() {
  const char* value = std::getenv("STRATA_FORCE_ISA");
  return value == nullptr ? std::string_view() : std::string_view(value);
}

}  // namespace

const hwy::ChosenTarget& chosen_target() {
  if (!chosen.IsInitialized()) force_isa({});
  return chosen;
}

void force_isa(std::string_view isa) {
  chosen.Update(find_target(isa.empty() ? environment_isa() : isa));
}

std::string_view active_isa() {
  const int64_t target = in_force(HWY_DISPATCH_TABLE(compiled_target))();
  for (const Isa& isa : kIsas) {
    if (isa.target == target) return isa.name;
  }
  return hwy::TargetName(target);
}

std::vector<std::string_view> available_isas() {
  std::vector<std::string_view> names;
  for (const Isa& isa : available()) names.push_back(isa.name);
  return names;
}

}  // namespace strata::ops
#endif  // HWY_ONCE
