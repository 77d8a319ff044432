// Which link of the traffic table a copy crosses: the same answer for every kind of device.
#pragma once

#include <optional>

#include "kernels/device/device.h"
#include "strata/traffic.h"

namespace strata {

// Nothing for copies that stay within the device or within the host.
constexpr std::optional<Activity> link_of(CopyDirection direction) {
  switch (direction) {
    case CopyDirection::host_to_device:
      return Activity::h2d;
    case CopyDirection::device_to_host:
      return Activity::d2h;
    case CopyDirection::device_to_device:
    case CopyDirection::host_to_host:
      return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace strata
