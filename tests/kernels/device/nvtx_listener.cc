// What a profiler is to NVTX: a library that NVTX opens by the name in NVTX_INJECTION64_PATH. It
// keeps the names of ranges in the order in which they begin, and "end" where one ends.
#include <nvtx3/nvToolsExt.h>

#include <mutex>
#include <string>
#include <vector>

namespace {

std::mutex mutex;
std::vector<std::string> heard;  // protected by mutex

void hear(const char* text) {
  const std::lock_guard lock(mutex);
  heard.emplace_back(text);
}

int NVTX_API push(const char* text) {
  hear(text);
  return 0;
}
int NVTX_API pop() {
  hear("end");
  return 0;
}

}  // namespace

extern "C" {

int NVTX_API InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table) {
  const auto* const callbacks =
      static_cast<const NvtxExportTableCallbacks*>(get_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned size = 0;
  if (callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &table, &size) == 0) return 0;
  *table[NVTX_CBID_CORE_RangePushA] = reinterpret_cast<NvtxFunctionPointer>(&push);
  *table[NVTX_CBID_CORE_RangePop] = reinterpret_cast<NvtxFunctionPointer>(&pop);
  return 1;
}

// Everything heard so far, in one line, and forgets it.
const char* take_heard() {
  static std::string line;
  const std::lock_guard lock(mutex);
  line.clear();
  for (const std::string& text : heard) line += (line.empty() ? "" : ", ") + text;
  heard.clear();
  return line.c_str();
}
}
