// One input: fuzz() keeps its contract, or the program ends.
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "strata/error.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/live_bytes.h"

namespace strata::fuzzing {
namespace {

[[noreturn]] void found(const char* what) {
  std::fprintf(stderr, "finding: %s\n", what);
  std::abort();
}

}  // namespace

void expect(bool condition, const char* what) {
  if (!condition) found(what);
}

}  // namespace strata::fuzzing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace strata::fuzzing;  // NOLINT
  restart_live_bytes();
  try {
    fuzz({reinterpret_cast<const char*>(data), size});
  } catch (const strata::Error& error) {
    expect(error.what()[0] != '\0', "an error without a message");
  } catch (const std::exception& error) {
    found(error.what());
  }
  expect(peak_live_bytes() <= allocation_limit(size), "more memory than the input accounts for");
  return 0;
}
