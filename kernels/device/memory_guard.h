// Memory that only a device may touch, for tests where the host stands in for a GPU.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>

namespace strata {

// Blocks fault at any access while no Access is held. Queues of the device hold one around each
// task, so that a thread that follows a pointer into device memory, as no GPU would let it, ends
// the process: always when the device is idle, and at the latest where queues run one at a time.
// Thread-safe.
class MemoryGuard {
 public:
  // May be null: nothing is guarded.
  class Access {
   public:
    explicit Access(MemoryGuard* guard) : guard_(guard) {
      if (guard_ != nullptr) guard_->enter();
    }
    ~Access() {
      if (guard_ != nullptr) guard_->leave();
    }
    Access(const Access&) = delete;
    Access& operator=(const Access&) = delete;

   private:
    MemoryGuard* const guard_;
  };

  // What holds an Access gives it up for as long as this lives.
  class Pause {
   public:
    explicit Pause(MemoryGuard* guard) : guard_(guard) {
      if (guard_ != nullptr) guard_->leave();
    }
    ~Pause() {
      if (guard_ != nullptr) guard_->enter();
    }
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    MemoryGuard* const guard_;
  };

  // Whole pages, and a range not added yet.
  void add(void* data, size_t bytes);
  void remove(void* data);

 private:
  void enter();
  void leave();
  void protect(int protection) const;

  std::mutex mutex_;
  std::map<void*, size_t> blocks_;
  int inside_ = 0;
};

}  // namespace strata
