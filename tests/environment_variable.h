// A variable of the environment, set or unset until destroyed.
#pragma once

#include <cstdlib>
#include <optional>
#include <string>

namespace strata {

// For threads that have no others beside them.
class EnvironmentVariable {
 public:
  // Unsets it where `value` is null.
  explicit EnvironmentVariable(const char* name, const char* value = nullptr) : name_(name) {
    if (const char* const before = std::getenv(name)) before_ = before;
    set(value);
  }
  ~EnvironmentVariable() { set(before_ ? before_->c_str() : nullptr); }
  EnvironmentVariable(const EnvironmentVariable&) = delete;
  EnvironmentVariable& operator=(const EnvironmentVariable&) = delete;

 private:
  void set(const char* value) {
    if (value != nullptr) {
      setenv(name_, value, 1);
    } else {
      unsetenv(name_);
    }
  }

  const char* const name_;
  std::optional<std::string> before_;
};

}  // namespace strata
