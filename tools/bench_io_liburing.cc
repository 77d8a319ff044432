// The bare loop that Strata's engine is measured against.
#include <fmt/format.h>
#include <liburing.h>
#include <sys/uio.h>

#include <cerrno>
#include <string_view>
#include <system_error>

#include "strata/clock.h"
#include "strata/error.h"
#include "tools/bench_io.h"

namespace strata::tools {

struct LiburingLoop::Ring {
  io_uring ring = {};
  bool buffers = false;  // registered
  bool file = false;

  ~Ring() { io_uring_queue_exit(&ring); }

  void submit(const LiburingLoop& loop, IoWalk::Step step, uint64_t block_bytes, uint64_t slot);
};

namespace {

[[noreturn]] void fail(std::string_view what, const io::BlockFile& file, int error_number) {
  throw IoError(fmt::format("the liburing loop cannot {} {}: {}", what, file.path(),
                            std::generic_category().message(error_number)),
                file.path(), 0, error_number);
}

}  // namespace

LiburingLoop::LiburingLoop(const io::BlockFile& file, uint32_t depth, std::span<std::byte> memory)
    : file_(file), memory_(memory), ring_(std::make_unique<Ring>()) {
  io_uring_params params = {};
  params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
  int error = io_uring_queue_init_params(depth, &ring_->ring, &params);
  if (error == -EINVAL) {  // before Linux 6.1
    params = {};
    error = io_uring_queue_init_params(depth, &ring_->ring, &params);
  }
  if (error != 0) fail("make a ring for", file, -error);
  const iovec buffer = {memory.data(), memory.size()};
  const int descriptor = file.fd();
  ring_->buffers = io_uring_register_buffers(&ring_->ring, &buffer, 1) == 0;
  ring_->file = io_uring_register_files(&ring_->ring, &descriptor, 1) == 0;
}

LiburingLoop::~LiburingLoop() = default;

void LiburingLoop::Ring::submit(const LiburingLoop& loop, IoWalk::Step step, uint64_t block_bytes,
                                uint64_t slot) {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring);
  std::byte* data = loop.memory_.data() + slot * block_bytes;
  const auto bytes = static_cast<unsigned>(block_bytes);
  const int fd = file ? 0 : loop.file_.fd();
  if (step.write) {
    buffers ? io_uring_prep_write_fixed(sqe, fd, data, bytes, step.offset, 0)
            : io_uring_prep_write(sqe, fd, data, bytes, step.offset);
  } else {
    buffers ? io_uring_prep_read_fixed(sqe, fd, data, bytes, step.offset, 0)
            : io_uring_prep_read(sqe, fd, data, bytes, step.offset);
  }
  if (file) io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
  io_uring_sqe_set_data64(sqe, slot);
}

IoResult LiburingLoop::run(const IoLoad& load, double seconds) {
  io_uring* ring = &ring_->ring;
  IoWalk walk(load.mix, file_.bytes(), load.block_bytes);
  IoResult result;
  const int64_t begin_ns = now_ns();
  const int64_t end_ns = begin_ns + static_cast<int64_t>(seconds * 1e9);
  uint32_t in_flight = 0;
  for (; in_flight < load.depth; ++in_flight) {
    ring_->submit(*this, walk.next(), load.block_bytes, in_flight);
  }
  while (in_flight > 0) {
    const int submitted = io_uring_submit_and_wait(ring, 1);
    if (submitted < 0 && submitted != -EINTR) fail("wait for", file_, -submitted);
    const bool go_on = now_ns() < end_ns;
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(ring, &cqe) == 0) {
      if (cqe->res != static_cast<int>(load.block_bytes)) {
        fail("move a block of", file_, cqe->res < 0 ? -cqe->res : EIO);
      }
      const uint64_t slot = cqe->user_data;
      io_uring_cqe_seen(ring, cqe);
      result.bytes += load.block_bytes;
      --in_flight;
      if (!go_on) continue;
      ring_->submit(*this, walk.next(), load.block_bytes, slot);
      ++in_flight;
    }
  }
  result.seconds = seconds_since(begin_ns);
  return result;
}

}  // namespace strata::tools
