// A move-only callable of fixed size: what a queue holds. Never allocates; a closure that does not
// fit fails to compile.
#pragma once

#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

namespace strata {

class HostTask {
 public:
  static constexpr size_t kCapacityBytes = 448;

  HostTask() = default;

  template <typename F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, HostTask> && std::is_invocable_v<F&>)
      HostTask(F&& f) {  // NOLINT: implicit, so that a lambda can be passed
    using Fn = std::remove_cvref_t<F>;
    static_assert(sizeof(Fn) <= kCapacityBytes, "closure too large for a HostTask");
    static_assert(alignof(Fn) <= alignof(std::max_align_t));
    static_assert(std::is_nothrow_move_constructible_v<Fn>);
    new (storage_) Fn(std::forward<F>(f));
    invoke_ = [](void* self) { (*static_cast<Fn*>(self))(); };
    relocate_ = [](void* from, void* to) noexcept {
      if (to != nullptr) new (to) Fn(std::move(*static_cast<Fn*>(from)));
      static_cast<Fn*>(from)->~Fn();
    };
  }

  HostTask(HostTask&& other) noexcept { take(other); }
  HostTask& operator=(HostTask&& other) noexcept {
    if (this != &other) {
      reset();
      take(other);
    }
    return *this;
  }
  ~HostTask() { reset(); }

  explicit operator bool() const { return invoke_ != nullptr; }
  void operator()() { invoke_(storage_); }  // only when it holds a callable

  void reset() noexcept {
    if (relocate_ != nullptr) relocate_(storage_, nullptr);
    invoke_ = nullptr;
    relocate_ = nullptr;
  }

 private:
  void take(HostTask& other) noexcept {
    if (other.relocate_ != nullptr) other.relocate_(other.storage_, storage_);
    invoke_ = std::exchange(other.invoke_, nullptr);
    relocate_ = std::exchange(other.relocate_, nullptr);
  }

  alignas(std::max_align_t) std::byte storage_[kCapacityBytes];
  void (*invoke_)(void*) = nullptr;
  // Moves the callable from the first place to the second, or destroys it when that is null.
  void (*relocate_)(void*, void*) noexcept = nullptr;
};

}  // namespace strata
