// The exceptions that Strata's public calls throw.
//
// Asynchronous work carries its exception in its ticket or event and throws it where it is waited
// for. Destructors never throw. Every message is one sentence that says what to change or where
// the fault lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "strata/tier.h"

namespace strata {

// Base of everything Strata throws on purpose.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Input that cannot be honoured: configuration, model description, data path, command line.
class ConfigError : public Error {
 public:
  using Error::Error;
};

// A request that exceeds a tier's budget. Thrown at start, before any work is done.
class OutOfBudget : public Error {
 public:
  OutOfBudget(const std::string& message, Tier tier, uint64_t needed_bytes,
              uint64_t available_bytes)
      : Error(message), tier(tier), needed_bytes(needed_bytes), available_bytes(available_bytes) {}

  const Tier tier;
  const uint64_t needed_bytes;
  const uint64_t available_bytes;
};

// The operating system refused or cut short a file operation.
class IoError : public Error {
 public:
  IoError(const std::string& message, std::string path, uint64_t offset, int error_number)
      : Error(message), path(std::move(path)), offset(offset), error_number(error_number) {}

  const std::string path;
  const uint64_t offset;   // bytes from the start of the file
  const int error_number;  // an errno value; 0 for an unexpected end of file
};

// Stored bytes are not the bytes that were written.
class CorruptionError : public Error {
 public:
  using Error::Error;
};

// A peer died, stalled or disagreed.
class CommError : public Error {
 public:
  using Error::Error;
};

// A device (GPU, or the host standing in for one) failed or is not there.
class DeviceError : public Error {
 public:
  using Error::Error;
};

// Throws Error with `what` unless `condition` holds: for a caller's mistakes.
inline void require(bool condition, std::string_view what) {
  if (!condition) throw Error(std::string(what));
}

}  // namespace strata
