// A communicator for one rank without a run: for what is written as ranks write it together.
#pragma once

#include <memory>

#include "engine/comm/communicator.h"
#include "kernels/device/host_device.h"
#include "kernels/ops/state_ops.h"
#include "strata/traffic.h"

namespace strata::engine {

class LoneRank {
 public:
  Communicator& comm() { return *comm_; }

 private:
  NullTrafficSink traffic_;
  const std::unique_ptr<Device> device_ = make_host_device({}, traffic_);
  const std::unique_ptr<Queue> queue_ = device_->create_queue({.name = "lone rank", .threads = 1});
  const std::unique_ptr<ops::StateOps> ops_ = ops::make_host_state_ops();
  const std::unique_ptr<Communicator> comm_ = make_communicator({}, *queue_, *ops_, {}, traffic_);
};

}  // namespace strata::engine
