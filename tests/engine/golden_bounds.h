// What rounding alone may do to the golden quantities.
//
// A value has passed through `depth` ops. Each of them sums at most n terms in fp32 and rounds its
// result to the dtype. A rounding is uniform within the unit roundoff u, so its deviation is
// u / sqrt(3); independent ones add in squares. Hence, as a share of the tensor's largest element,
//
//     sigma(depth) = sqrt(depth / 3 * (u^2 + n * u32^2)),    u32 = 2^-24, u = u32, 2^-8 in bf16,
//     2^-11 in fp16,
//
// and no element may be off by more than kSigmas of it, which a few thousand normal deviates do not
// reach in practice.
//
//   * logits: depth is the ops of the forward pass;
//   * gradients: those, the cross-entropy, and the ops of backward down to the parameter's unit;
//   * loss: a row's is off by its target's logit and by the mean of all, and the rows are averaged:
//     sigma(logits) * max |logit| * sqrt(2 / rows);
//   * the loss of step k: an update moves each parameter by about lr, and wrongly by sigma(grad) of
//     that, independently of the others: sigma(loss) + sigma(grad) * lr * sum over j < k of |g_j|.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/engine/golden_run.h"

namespace strata::testing_support {

inline constexpr double kSigmas = 4;

double largest_magnitude(const std::vector<double>& values);
// Infinite where an element is not a number, or the sizes differ.
double largest_error(const std::vector<double>& values, const std::vector<double>& truth);

class Rounding {
 public:
  // `truth`: of batch 0, for the loss.
  Rounding(DType dtype, const Quantities& truth);

  // By the formulas above: relative to the quantity's largest magnitude.
  double sigma(const std::string& quantity) const;
  // The largest of a gradient's sigmas.
  double sigma_of_gradients() const;

 private:
  double sigma_after(double depth) const;

  double per_op_ = 0;  // sigma(1)
  double loss_sigma_ = 0;
};

// One line of a comparison.
struct Deviation {
  std::string quantity;
  double error = 0;  // relative to the largest magnitude
  double bound = 0;

  double ratio() const { return error / bound; }
};
std::vector<Deviation> deviations(const Quantities& measured, const Quantities& truth,
                                  const Rounding& rounding);
// The one that comes closest to its bound, or is farthest beyond it.
Deviation worst(const std::vector<Deviation>& deviations);

// Losses and gradient norms before clipping of steps of AdamW as golden_inputs() has it. The norms
// tell what losses do not: Adam does not see the gradients' scale.
struct TrainingCurve {
  std::vector<double> losses, grad_norms;
};
// By fp64 arithmetic.
TrainingCurve golden_curve(const SafetensorsFixture& results);
std::vector<Deviation> training_deviations(const std::function<StepResult(size_t)>& step,
                                           const TrainingCurve& truth, const Rounding& rounding);

// Prints "name: error / bound = ratio".
void print(const Deviation& deviation);

// How errors show in 16 bits, where 1 % is about what roundings add up to. Batches are stacked,
// each tensor over its norm: E, a run's error against truth, and D, the deviation from truth that a
// planted error causes in fp32. The projection E.D / D.D is near 1 with the error and near 0
// without.
//
// How near: a tensor t of sigma_t has an error of length sigma_t, spread over at least as many
// directions as its longest dimension l_t has elements (a matrix's elements share the errors of
// their rows). The errors of one batch's tensors may go together; batches are independent:
//
//     sigma = sqrt(sum over batches of (sum over t of |D_t| * sigma_t / sqrt(l_t))^2) / D.D
class Projection {
 public:
  // What one batch gives.
  struct Batch {
    const Quantities& truth;     // by fp32 without the plant
    const Quantities& deviated;  // by fp32 with it
    const Quantities& clean;     // without it
    const Quantities& planted;   // with it
  };
  void add(const Batch& batch, const Rounding& rounding);

  double clean() const { return clean_ / squares_; }
  double planted() const { return planted_ / squares_; }
  double sigma() const;

 private:
  double clean_ = 0;     // E.D without the plant
  double planted_ = 0;   // E.D with it
  double squares_ = 0;   // D.D
  double variance_ = 0;  // of E.D
};

}  // namespace strata::testing_support
