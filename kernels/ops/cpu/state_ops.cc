#include "kernels/ops/state_ops.h"

namespace strata::ops {
namespace {

class HostStateOps final : public StateOps {
 public:
  void optimizer_update(Queue& queue, const OptimizerScalars& scalars,
                        const EncodedSpans& spans) override {
    queue.run([scalars, spans] { ops::optimizer_update(scalars, spans); });
  }
  void land_gradient(Queue& queue, const LandGradientSpans& spans) override {
    queue.run([spans] { ops::land_gradient(spans); });
  }
};

}  // namespace

std::unique_ptr<StateOps> make_host_state_ops() { return std::make_unique<HostStateOps>(); }

}  // namespace strata::ops
