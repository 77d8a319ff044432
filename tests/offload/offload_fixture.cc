#include "tests/offload/offload_fixture.h"

namespace strata::offload {

std::unique_ptr<Pump> make_pump(TrafficSink& traffic, const io::FaultPlan* faults,
                                size_t capacity) {
  NullLogSink log;
  auto backend = io::make_backend(io::BackendChoice::automatic, 8, 2, log);
  if (faults != nullptr) backend = io::make_fault_backend(std::move(backend), *faults);
  return make_pump(traffic, std::move(backend), capacity);
}

std::unique_ptr<Pump> make_pump(TrafficSink& traffic, std::unique_ptr<io::IoBackend> backend,
                                size_t capacity) {
  io::IoEngine::Options options;
  options.block_bytes = 64 << 10;
  return std::make_unique<Pump>(
      std::make_unique<io::IoEngine>(std::move(backend), options, traffic), capacity);
}

}  // namespace strata::offload
