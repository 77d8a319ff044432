#include "io/uring_registration.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <system_error>

namespace strata::io {
namespace {

constexpr size_t kMaxBufferBytes = size_t{1} << 30;  // the kernel's limit

uintptr_t address(const void* data) { return reinterpret_cast<uintptr_t>(data); }

// In pieces that the kernel takes, in the order of their addresses.
std::vector<iovec> pieces_of(const std::vector<std::span<std::byte>>& buffers) {
  std::vector<iovec> pieces;
  for (std::span<std::byte> rest : buffers) {
    while (!rest.empty()) {
      const size_t bytes = std::min(rest.size(), kMaxBufferBytes);
      pieces.push_back({rest.data(), bytes});
      rest = rest.subspan(bytes);
    }
  }
  std::sort(pieces.begin(), pieces.end(), [](const iovec& a, const iovec& b) {
    return address(a.iov_base) < address(b.iov_base);
  });
  return pieces;
}

std::string refusal(std::string_view what, int error_number) {
  std::string text =
      fmt::format(", no registered {} ({}", what, std::generic_category().message(error_number));
  // Pinned pages count against the limit of locked memory.
  if (error_number == ENOMEM) text += "; see ulimit -l";
  return text + ")";
}

}  // namespace

void UringRegistration::attach(io_uring& ring, const IoResources& resources) {
  if (!resources.files.empty()) {
    files_error_ = -io_uring_register_files(&ring, resources.files.data(),
                                            static_cast<unsigned>(resources.files.size()));
    if (files_error_ <= 0) files_ = resources.files;
  }
  std::vector<iovec> pieces = pieces_of(resources.buffers);
  if (!pieces.empty()) {
    buffers_error_ =
        -io_uring_register_buffers(&ring, pieces.data(), static_cast<unsigned>(pieces.size()));
    if (buffers_error_ <= 0) buffers_ = std::move(pieces);
  }
}

void UringRegistration::prepare(io_uring_sqe* sqe, const Transfer& transfer) const {
  const int buffer = buffer_index(transfer);
  const auto [op, fd, offset, data, bytes, cookie] = transfer;
  if (op == Op::flush) {
    io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
  } else if (op == Op::read) {
    buffer == kNone ? io_uring_prep_read(sqe, fd, data, bytes, offset)
                    : io_uring_prep_read_fixed(sqe, fd, data, bytes, offset, buffer);
  } else {
    buffer == kNone ? io_uring_prep_write(sqe, fd, data, bytes, offset)
                    : io_uring_prep_write_fixed(sqe, fd, data, bytes, offset, buffer);
  }
  io_uring_sqe_set_data64(sqe, cookie);
  if (const int file = file_index(fd); file != kNone) {
    sqe->fd = file;
    io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
  }
}

// The buffer that holds the transfer whole.
int UringRegistration::buffer_index(const Transfer& transfer) const {
  if (transfer.op == Op::flush) return kNone;
  const uintptr_t begin = address(transfer.data);
  const auto behind = std::upper_bound(
      buffers_.begin(), buffers_.end(), begin,
      [](uintptr_t at, const iovec& buffer) { return at < address(buffer.iov_base); });
  if (behind == buffers_.begin()) return kNone;
  const auto buffer = behind - 1;
  const uintptr_t end = address(buffer->iov_base) + buffer->iov_len;
  if (begin + transfer.bytes > end) return kNone;
  return static_cast<int>(buffer - buffers_.begin());
}

// They are few.
int UringRegistration::file_index(int fd) const {
  const auto file = std::find(files_.begin(), files_.end(), fd);
  return file == files_.end() ? kNone : static_cast<int>(file - files_.begin());
}

std::string UringRegistration::describe() const {
  std::vector<std::string_view> in_force;
  if (!buffers_.empty()) in_force.push_back("buffers");
  if (!files_.empty()) in_force.push_back("files");
  std::string text;
  if (!in_force.empty()) text = fmt::format(", registered {}", fmt::join(in_force, " and "));
  if (buffers_error_ > 0) text += refusal("buffers", buffers_error_);
  if (files_error_ > 0) text += refusal("files", files_error_);
  return text;
}

}  // namespace strata::io
