// The perceptron's mathematics in double, an element at a time, to hold the engine's to.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "strata/engine.h"
#include "tests/engine/perceptron.h"

namespace strata::perceptron {

// `scale` is the magnitude of what was added up, which rounding errors are relative to.
struct Real {
  double value = 0, scale = 0;
};
using Matrix = std::vector<Real>;  // row-major

struct Reference {
  explicit Reference(Engine& engine) {
    for (const auto& spec : kSpecs) {
      weights.push_back(read(engine, spec.name + ".weight"));
      biases.push_back(read(engine, spec.name + ".bias"));
    }
  }

  static Matrix read(Engine& engine, const std::string& name) {
    Matrix values;
    for (float v : engine.read_parameter(name, StateKind::param)) {
      values.push_back({v, std::abs(v)});
    }
    return values;
  }
  static size_t at(int64_t row, int64_t column, int64_t columns) {
    return static_cast<size_t>(row * columns + column);
  }
  static void add(Real& sum, const Real& a, const Real& b) {
    sum.value += a.value * b.value;
    sum.scale += a.scale * b.scale;
  }
  static double inner(double x) { return std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x); }
  static double gelu(double x) { return 0.5 * x * (1 + std::tanh(inner(x))); }
  static double gelu_slope(double x) {
    const double t = std::tanh(inner(x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
  }

  // Logits; xs and sums of each layer are kept for backward.
  Matrix forward(const Sample& sample) {
    xs.assign(1, {});
    sums.clear();
    for (float v : sample.features) xs[0].push_back({v, std::abs(v)});
    for (size_t layer = 0; layer < kSpecs.size(); ++layer) {
      const auto& [name, in, out, last, gives_scores] = kSpecs[layer];
      Matrix y;
      for (int64_t row = 0; row < kRows; ++row) {
        for (int64_t o = 0; o < out; ++o) {
          Real sum = biases[layer][static_cast<size_t>(o)];
          for (int64_t i = 0; i < in; ++i) {
            add(sum, xs[layer][at(row, i, in)], weights[layer][at(i, o, out)]);
          }
          y.push_back(sum);
        }
      }
      sums.push_back(y);
      for (Real& v : y) v = {gelu(v.value), v.scale};
      xs.push_back(std::move(y));
    }
    return sums.back();
  }

  // Adds the sample's gradients to weight_grads and bias_grads; its loss.
  double backward(const Sample& sample) {
    Matrix grad = forward(sample);
    double loss = 0;
    const auto counted = static_cast<double>(std::count_if(
        sample.targets.begin(), sample.targets.end(), [](int32_t t) { return t >= 0; }));
    for (int64_t row = 0; row < kRows; ++row) {
      const int32_t target = sample.targets[static_cast<size_t>(row)];
      Real* logits = &grad[at(row, 0, kClasses)];
      double total = 0;
      for (int64_t c = 0; c < kClasses; ++c) total += std::exp(logits[c].value);
      if (target >= 0) loss -= (logits[target].value - std::log(total)) / counted;
      for (int64_t c = 0; c < kClasses; ++c) {
        const double p = std::exp(logits[c].value) / total;
        const double g = target < 0 ? 0 : (p - (c == target ? 1 : 0)) / counted;
        // A change of a logit changes p by as much, at most.
        logits[c] = {g, target < 0 ? 0 : (1 + p * logits[c].scale) / counted};
      }
    }
    for (size_t layer = kSpecs.size(); layer-- > 0;) grad = backward(layer, grad);
    return loss;
  }

  Matrix backward(size_t layer, const Matrix& grad) {
    const auto& [name, in, out, last, gives_scores] = kSpecs[layer];
    weight_grads[layer].resize(static_cast<size_t>(in * out));
    bias_grads[layer].resize(static_cast<size_t>(out));
    Matrix x_grad(static_cast<size_t>(kRows * in));
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t o = 0; o < out; ++o) {
        const Real& g = grad[at(row, o, out)];
        add(bias_grads[layer][static_cast<size_t>(o)], g, {1, 1});
        for (int64_t i = 0; i < in; ++i) {
          add(weight_grads[layer][at(i, o, out)], g, xs[layer][at(row, i, in)]);
          add(x_grad[at(row, i, in)], g, weights[layer][at(i, o, out)]);
        }
      }
    }
    if (layer == 0) return {};
    for (size_t i = 0; i < x_grad.size(); ++i) {
      const Real& sum = sums[layer - 1][i];
      x_grad[i].value *= gelu_slope(sum.value);
      x_grad[i].scale *= 1.2 + sum.scale;  // slope and curvature of gelu are at most 1.2
    }
    return x_grad;
  }

  std::vector<Matrix> weights, biases, xs, sums;
  std::vector<Matrix> weight_grads = std::vector<Matrix>(kSpecs.size());
  std::vector<Matrix> bias_grads = std::vector<Matrix>(kSpecs.size());
};

// Within a few roundings of each step's sum.
inline void expect_close(const std::vector<float>& actual, const Matrix& expected,
                         const char* what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i].value, 0x1p-20 * expected[i].scale) << what << " " << i;
  }
}

}  // namespace strata::perceptron
