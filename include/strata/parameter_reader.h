// Values of a model's parameters from elsewhere: another program's files, a checkpoint.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

namespace strata {

// Fills `out` with the elements of a parameter from `first` on, row-major. The parameter is the
// whole one, whatever tiles the model is run in, by the name it has without them. Throws Error for
// one that it does not have.
using ParameterReader =
    std::function<void(std::string_view name, int64_t first, std::span<float> out)>;

}  // namespace strata
