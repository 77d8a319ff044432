#include "kernels/ops/state_ops.h"

namespace strata::ops {
namespace {

class HostStateOps final : public StateOps {
 public:
  void adamw_update(Queue& queue, const AdamWScalars& scalars, const AdamWSpans& spans) override {
    queue.run([scalars, spans] { ops::adamw_update(scalars, spans); });
  }
  void land_gradient(Queue& queue, const LandGradientSpans& spans) override {
    queue.run([spans] { ops::land_gradient(spans); });
  }
};

}  // namespace

std::unique_ptr<StateOps> make_host_state_ops() { return std::make_unique<HostStateOps>(); }

}  // namespace strata::ops
