// What the tests of the layers' mathematics share: reference numbers that carry their own error,
// tensors in every dtype, and a device to compute on.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/ops/layer_ops.h"
#include "kernels/ops/numeric.h"
#include "strata/dtype.h"
#include "strata/tensor.h"
#include "tests/kernels/ops/device_under_test.h"

namespace strata::ops {

// Largest relative error of one rounding.
inline double unit_roundoff(DType dtype) {
  return dtype == DType::bf16 ? 0x1p-8 : dtype == DType::fp16 ? 0x1p-11 : 0x1p-24;
}
// Largest error of rounding `value`. fp16's subnormals lie 2^-24 apart; no test comes near those of
// the others.
inline double rounding_error(DType dtype, double value) {
  return std::max(unit_roundoff(dtype) * std::abs(value), dtype == DType::fp16 ? 0x1p-25 : 0);
}

// 16-bit dtypes, to nearest even.
inline uint16_t narrowed(DType dtype, double value) {
  const float single = static_cast<float>(value);
  return dtype == DType::bf16 ? float_to_bf16_half_even(single) : float_to_fp16(single);
}
inline double widened(DType dtype, uint16_t stored) {
  return dtype == DType::bf16 ? bf16_to_float(stored) : fp16_to_float(stored);
}

// What exact arithmetic gives, and how far an implementation that computes in fp32 may be from it.
// Errors of different roundings are independent, so they add as squares do.
struct Real {
  double value = 0;
  double error = 0;

  Real() = default;
  Real(double exact) : value(exact) {}  // NOLINT: an exact number is a Real
  Real(double v, double e) : value(v), error(e) {}

  // As a result of fp32 arithmetic, or as stored in `dtype`; what that holds exactly is not
  // rounded.
  Real rounded(DType dtype = DType::fp32) const {
    if (dtype != DType::fp32 && widened(dtype, narrowed(dtype, value)) == value) return *this;
    return {value, std::hypot(error, rounding_error(dtype, value))};
  }
};

inline Real operator+(const Real& a, const Real& b) {
  return Real{a.value + b.value, std::hypot(a.error, b.error)}.rounded();
}
inline Real operator-(const Real& a, const Real& b) {
  return Real{a.value - b.value, std::hypot(a.error, b.error)}.rounded();
}
inline Real operator*(const Real& a, const Real& b) {
  return Real{a.value * b.value, std::hypot(a.value * b.error, b.value * a.error)}.rounded();
}
inline Real operator/(const Real& a, const Real& b) {
  const double quotient = a.value / b.value;
  return Real{quotient, std::hypot(a.error, quotient * b.error) / std::abs(b.value)}.rounded();
}
// The exponential of Highway is good to one unit in the last place.
inline Real exp(const Real& x) {
  const double y = std::exp(x.value);
  return Real{y, y * x.error}.rounded().rounded();
}

// A sum of many terms, added up in fp32 in an order that the test does not know: each addition
// rounds a partial sum that is at most the sum of magnitudes.
class Sum {
 public:
  void add(const Real& term) {
    value_ += term.value;
    magnitude_ += std::abs(term.value);
    squared_errors_ += term.error * term.error;
    ++terms_;
  }
  Real total() const {
    const double additions = 0x1p-24 * magnitude_ * std::sqrt(static_cast<double>(terms_));
    return {value_, std::hypot(std::sqrt(squared_errors_), additions)};
  }

 private:
  double value_ = 0;
  double magnitude_ = 0;
  double squared_errors_ = 0;
  int64_t terms_ = 0;
};

using Reals = std::vector<Real>;

// Elements in their stored form, in memory of the device under test.
class Tensor {
 public:
  // All bytes 0xff, which is NaN in every floating-point dtype: an element that is read before it
  // is written, or never written, shows.
  Tensor(DType dtype, const Shape& shape)
      : dtype_(dtype),
        shape_(shape),
        bytes_(static_cast<size_t>(shape.numel()) * size_bytes(dtype)),
        memory_(bytes_) {
    std::memset(memory_.data(), 0xff, bytes_);
  }

  static Tensor scratch(size_t bytes) {
    return Tensor(DType::fp32, {static_cast<int64_t>((bytes + 3) / 4)});
  }
  static Tensor normal(DType dtype, const Shape& shape, uint64_t seed, double mean = 0,
                       double deviation = 1) {
    Tensor tensor(dtype, shape);
    std::mt19937_64 random(seed);
    std::normal_distribution<double> draw(mean, deviation);
    for (int64_t i = 0; i < tensor.numel(); ++i) tensor.set(i, draw(random));
    return tensor;
  }
  static Tensor ids(const Shape& shape, int64_t vocab, uint64_t seed) {
    Tensor tensor(DType::int32, shape);
    std::mt19937_64 random(seed);
    std::uniform_int_distribution<int32_t> draw(0, static_cast<int32_t>(vocab - 1));
    for (int64_t i = 0; i < tensor.numel(); ++i) tensor.as<int32_t>()[i] = draw(random);
    return tensor;
  }
  Tensor copy() const {
    Tensor other(dtype_, shape_);
    std::memcpy(other.memory_.data(), memory_.data(), bytes_);
    return other;
  }

  DType dtype() const { return dtype_; }
  int64_t numel() const { return shape_.numel(); }
  TensorView view() const { return {memory_.data(), dtype_, shape_}; }
  operator TensorView() const { return view(); }  // NOLINT: tensors are passed as views
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(memory_.data());
  }

  double operator[](int64_t i) const {
    if (dtype_ == DType::fp32) return as<float>()[i];
    if (dtype_ == DType::int32) return as<int32_t>()[i];
    return widened(dtype_, as<uint16_t>()[i]);
  }
  void set(int64_t i, double value) {
    if (dtype_ == DType::fp32) {
      as<float>()[i] = static_cast<float>(value);
    } else {
      as<uint16_t>()[i] = narrowed(dtype_, value);
    }
  }
  bool same_bits(const Tensor& other) const {
    return bytes_ == other.bytes_ && std::memcmp(memory_.data(), other.memory_.data(), bytes_) == 0;
  }

 private:
  DType dtype_;
  Shape shape_;
  size_t bytes_;
  SharedMemory memory_;
};

// The largest |actual - expected| in units of what is allowed, over all elements; infinite where a
// NaN was not expected. Roundings stay within four of their error's size together, the last one
// within its own.
inline double worst_excess(const Tensor& actual, const Reals& expected, double scale = 1) {
  double worst = 0;
  for (int64_t i = 0; i < actual.numel(); ++i) {
    const Real& want = expected[static_cast<size_t>(i)];
    const double last = rounding_error(actual.dtype(), want.value);
    const double allowed = 4 * want.error + last + 1e-30;
    const double excess = std::abs(actual[i] * scale - want.value) / allowed;
    worst = std::isnan(excess) ? std::numeric_limits<double>::infinity() : std::max(worst, excess);
  }
  return worst;
}

// Also that an error of 1 % would have been seen.
inline void expect_close(const Tensor& actual, const Reals& expected, const std::string& what) {
  ASSERT_EQ(actual.numel(), static_cast<int64_t>(expected.size())) << what;
  EXPECT_LE(worst_excess(actual, expected), 1) << what;
  const bool all_zero =
      std::all_of(expected.begin(), expected.end(), [](const Real& x) { return x.value == 0; });
  if (!all_zero) {
    EXPECT_GT(worst_excess(actual, expected, 1.01), 1) << what << ": 1 % more is not seen";
    EXPECT_GT(worst_excess(actual, expected, 0.99), 1) << what << ": 1 % less is not seen";
  }
}

// A gradient on top of what its output held.
inline Reals accumulated(const Reals& gradient, const Tensor& before) {
  Reals sums;
  for (size_t i = 0; i < gradient.size(); ++i) {
    sums.push_back(gradient[i] + Real(before[static_cast<int64_t>(i)]));
  }
  return sums;
}

// Layers on a queue of the device under test; `threads` are the host's.
class Bench {
 public:
  explicit Bench(int threads = 2)
      : queue_(make_queue_under_test(threads)), ops_(make_ops_under_test(*queue_, threads)) {}

  LayerOps* operator->() { return ops_.get(); }
  void finish() { queue_->synchronize(); }

 private:
  std::unique_ptr<Queue> queue_;
  std::unique_ptr<LayerOps> ops_;
};

// Compares a gradient with finite differences of sum(out * direction) along random directions.
// `evaluate` recomputes `out` from `input`.
template <typename Evaluate>
void expect_matches_differences(Tensor& input, const Tensor& gradient, const Tensor& out,
                                const Tensor& out_grad, const Evaluate& evaluate,
                                double step = 1e-2) {
  const auto loss = [&] {
    evaluate();
    double sum = 0;
    for (int64_t i = 0; i < out.numel(); ++i) sum += out[i] * out_grad[i];
    return sum;
  };
  const Tensor start = input.copy();
  for (uint64_t seed = 0; seed < 4; ++seed) {
    const Tensor direction = Tensor::normal(DType::fp32, {input.numel()}, 900 + seed);
    const auto move = [&](double by) {
      for (int64_t i = 0; i < input.numel(); ++i) input.set(i, start[i] + by * direction[i]);
      return loss();
    };
    // Four points: the error is of the fourth order in the step.
    const double slope =
        (8 * (move(step) - move(-step)) - (move(2 * step) - move(-2 * step))) / (12 * step);
    double predicted = 0;
    double squares = 0;
    for (int64_t i = 0; i < input.numel(); ++i) {
      predicted += gradient[i] * direction[i];
      squares += gradient[i] * gradient[i];
    }
    EXPECT_NEAR(slope, predicted, 2e-3 * std::sqrt(squares)) << "direction " << seed;
  }
  for (int64_t i = 0; i < input.numel(); ++i) input.set(i, start[i]);
}

inline constexpr DType kLayerDTypes[] = {DType::fp32, DType::bf16, DType::fp16};

}  // namespace strata::ops
