// Where Strata's rooms say things to people: one warning, one start-up line. Given at
// construction; nothing in Strata prints to a stream on its own.
#pragma once

#include <cstdint>
#include <string_view>

namespace strata {

enum class LogLevel : uint8_t { info, warning };

// Thread-safe.
class LogSink {
 public:
  virtual ~LogSink() = default;
  virtual void log(LogLevel level, std::string_view message) = 0;
};

class NullLogSink final : public LogSink {
 public:
  void log(LogLevel, std::string_view) override {}
};

}  // namespace strata
