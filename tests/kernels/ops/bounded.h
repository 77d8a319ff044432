// Double-precision arithmetic that knows how far fp32 arithmetic may be from it.
//
// Each operation adds the rounding that the same operation makes in fp32 to what it inherits: half
// a unit in the last place, u = 2^-24 relative, or half the smallest denormal.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace strata::ops {

struct Bounded {
  double value = 0;
  double bound = 0;  // absolute
};

namespace internal {
inline Bounded rounded(double value, double inherited) {
  return {value, inherited + 0x1p-24 * (std::abs(value) + inherited) + 0x1p-150};
}
inline double product_bound(const Bounded& a, const Bounded& b) {
  return std::abs(a.value) * b.bound + std::abs(b.value) * a.bound + a.bound * b.bound;
}
}  // namespace internal

// A configured scalar, rounded to fp32 once.
inline Bounded scalar(double value) { return internal::rounded(value, 0); }

inline Bounded operator+(const Bounded& a, const Bounded& b) {
  return internal::rounded(a.value + b.value, a.bound + b.bound);
}

inline Bounded operator*(const Bounded& a, const Bounded& b) {
  return internal::rounded(a.value * b.value, internal::product_bound(a, b));
}

// a * b + c in one rounding.
inline Bounded fused(const Bounded& a, const Bounded& b, const Bounded& c) {
  return internal::rounded(a.value * b.value + c.value, internal::product_bound(a, b) + c.bound);
}

// Infinitely uncertain where the divisor may be zero.
inline Bounded operator/(const Bounded& a, const Bounded& b) {
  const double least = std::abs(b.value) - b.bound;
  if (!(least > 0)) return {a.value / b.value, std::numeric_limits<double>::infinity()};
  const double quotient = a.value / b.value;
  return internal::rounded(quotient, (a.bound + std::abs(quotient) * b.bound) / least);
}

inline Bounded sqrt(const Bounded& a) {
  const double root = std::sqrt(a.value);
  const double below = root - std::sqrt(std::max(a.value - a.bound, 0.0));
  const double above = std::sqrt(a.value + a.bound) - root;
  return internal::rounded(root, std::max(below, above));
}

// -1, 0 or 1, and any of them where the sign is not certain.
inline Bounded sign(const Bounded& a) {
  if (std::abs(a.value) <= a.bound) return {0, 1};
  return {a.value > 0 ? 1.0 : -1.0, 0};
}

// As fp32 moments are kept: zero below the smallest normal number.
inline Bounded flushed(const Bounded& a) {
  return {a.value, a.bound + std::numeric_limits<float>::min()};
}

}  // namespace strata::ops
