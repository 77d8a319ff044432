// One io_uring, driven by one thread.
//
// The ring is made in the constructor, so that a kernel that forbids it is known at once, but
// disabled: SINGLE_ISSUER binds a ring to the thread that enables it, which is the one that first
// submits or reaps. wake() writes an eventfd that the ring polls; polled rather than read, so that
// the kernel never holds a pointer into this object.
#include <fmt/format.h>
#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "io/io_backend.h"
#include "io/uring_registration.h"
#include "strata/error.h"

namespace strata::io {
namespace {

constexpr uint64_t kWakeCookie = UINT64_MAX;
constexpr uint32_t kMaxDepth = 4096;  // 4 GiB in flight at 1 MiB a transfer

[[noreturn]] void fail(std::string_view what, int error_number) {
  throw IoError(fmt::format("{}: {}", what, std::generic_category().message(error_number)), "", 0,
                error_number);
}

// io_uring_enable_rings(), which liburing 2.3 declares and does not export.
bool enable(const io_uring& ring) {
  return ::syscall(SYS_io_uring_register, ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0) ==
         0;
}

class UringBackend final : public IoBackend {
 public:
  explicit UringBackend(uint32_t max_in_flight) : max_in_flight_(max_in_flight) {
    event_fd_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (event_fd_ < 0) fail("cannot create an eventfd", errno);
    const int error_number = make_ring();
    if (error_number != 0) {
      ::close(event_fd_);
      fail("io_uring is not available here", error_number);
    }
  }

  ~UringBackend() override {
    std::array<Completion, 16> dropped;
    while (in_flight_ > 0 && enter(std::chrono::milliseconds(-1)) == 0) drain(dropped);
    io_uring_queue_exit(&ring_);
    ::close(event_fd_);
  }

  void attach(const IoResources& resources) override { registration_.attach(ring_, resources); }

  void submit(const Transfer& transfer) override {
    if (in_flight_ == max_in_flight_) throw std::logic_error("more transfers than the depth");
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);  // there is room for the depth and the poll
    registration_.prepare(sqe, transfer);
    ++in_flight_;
  }

  size_t reap(std::span<Completion> out, std::chrono::milliseconds timeout) override {
    const int error_number = enter(timeout);
    if (error_number != 0) fail("io_uring_enter failed", error_number);
    return drain(out);
  }

  void wake() override {
    const uint64_t one = 1;
    // It can only fail with a counter so full that the reader wakes anyway.
    [[maybe_unused]] const ssize_t written = ::write(event_fd_, &one, sizeof(one));
  }

  uint32_t max_in_flight() const override { return max_in_flight_; }
  std::string name() const override { return "io_uring" + registration_.describe(); }

 private:
  int make_ring();
  int enter(std::chrono::milliseconds timeout);
  int submit_and_wait(std::chrono::milliseconds timeout);
  void poll_event();
  size_t drain(std::span<Completion> out);

  const uint32_t max_in_flight_;
  int event_fd_ = -1;
  io_uring ring_ = {};
  UringRegistration registration_;
  bool enabled_ = false;
  bool polling_ = false;
  uint32_t in_flight_ = 0;  // submitted and not reaped, whether the kernel knows them yet or not
};

// Returns an errno value.
int UringBackend::make_ring() {
  // With DEFER_TASKRUN completions are processed when we ask, not in the middle of other work;
  // Linux 6.1 has it. Older kernels take the plain ring.
  constexpr std::array<uint32_t, 2> kFlagSets = {
      IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
      IORING_SETUP_R_DISABLED};
  int error = 0;
  for (uint32_t flags : kFlagSets) {
    io_uring_params params = {};
    params.flags = flags;
    error = io_uring_queue_init_params(max_in_flight_ + 1, &ring_, &params);
    if (error != -EINVAL) break;
  }
  if (error != 0) return -error;
  // Waits with a timeout as an argument (5.11), not as one more submission.
  if ((ring_.features & IORING_FEAT_EXT_ARG) == 0) {
    io_uring_queue_exit(&ring_);
    return ENOSYS;
  }
  return 0;
}

// Hands everything submitted to the kernel and waits for a completion; returns an errno value.
int UringBackend::enter(std::chrono::milliseconds timeout) {
  if (!enabled_) {
    if (!enable(ring_)) return errno;
    enabled_ = true;
  }
  if (!polling_) poll_event();
  const int result = submit_and_wait(timeout);
  switch (-result) {
    case ETIME:
    case EINTR:
      return 0;
    case EAGAIN:
    case EBUSY:
      // The kernel is short of memory for requests. Nothing was lost; do not spin meanwhile.
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      return 0;
    default:
      return result < 0 ? -result : 0;
  }
}

int UringBackend::submit_and_wait(std::chrono::milliseconds timeout) {
  if (timeout.count() == 0 || io_uring_cq_ready(&ring_) > 0) {
    return io_uring_submit_and_get_events(&ring_);
  }
  __kernel_timespec limit = {};
  limit.tv_sec = timeout.count() / 1000;
  limit.tv_nsec = timeout.count() % 1000 * 1'000'000;
  io_uring_cqe* first = nullptr;
  return io_uring_submit_and_wait_timeout(&ring_, &first, 1, timeout.count() < 0 ? nullptr : &limit,
                                          nullptr);
}

void UringBackend::poll_event() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  io_uring_prep_poll_add(sqe, event_fd_, POLLIN);
  io_uring_sqe_set_data64(sqe, kWakeCookie);
  polling_ = true;
}

size_t UringBackend::drain(std::span<Completion> out) {
  size_t count = 0;
  io_uring_cqe* cqe = nullptr;
  while (count < out.size() && io_uring_peek_cqe(&ring_, &cqe) == 0) {
    if (cqe->user_data == kWakeCookie) {
      uint64_t wakes = 0;
      [[maybe_unused]] const ssize_t read_bytes = ::read(event_fd_, &wakes, sizeof(wakes));
      polling_ = false;
    } else {
      out[count++] = {cqe->user_data, cqe->res};
      --in_flight_;
    }
    io_uring_cqe_seen(&ring_, cqe);
  }
  return count;
}

}  // namespace

std::unique_ptr<IoBackend> make_uring_backend(uint32_t max_in_flight) {
  if (max_in_flight < 1 || max_in_flight > kMaxDepth) {
    throw ConfigError(fmt::format("the I/O depth must lie between 1 and {}, and {} does not",
                                  kMaxDepth, max_in_flight));
  }
  return std::make_unique<UringBackend>(max_in_flight);
}

}  // namespace strata::io
