// What tests of offload share: a directory, and a pump over a chosen backend.
#pragma once

#include <memory>

#include "io/block_file.h"
#include "io/io_backend.h"
#include "kernels/device/host_device.h"
#include "offload/pump.h"
#include "offload/recorder.h"
#include "strata/log.h"
#include "tests/temporary_directory.h"

namespace strata::offload {

using testing_support::TemporaryDirectory;

// A pump over the automatic backend; with `faults`, behind the fault-injecting decorator.
std::unique_ptr<Pump> make_pump(TrafficSink& traffic, const io::FaultPlan* faults = nullptr,
                                size_t capacity = 32);
// Over this one.
std::unique_ptr<Pump> make_pump(TrafficSink& traffic, std::unique_ptr<io::IoBackend> backend,
                                size_t capacity = 32);

}  // namespace strata::offload
