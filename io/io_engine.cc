#include "io/io_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <string_view>
#include <system_error>
#include <utility>

#include "strata/clock.h"
#include "strata/error.h"

namespace strata::io {
namespace {

// Attempts in a row that move nothing. After EAGAIN or EINTR the first comes at once, the others
// wait 1, 2, 4 .. 64 ms: about four seconds in all, longer than a shortage in the kernel lasts.
constexpr uint32_t kMaxAttempts = 64;
constexpr int64_t kMinBackoffNs = 1'000'000;
constexpr uint32_t kMaxBackoffDoublings = 6;

constexpr int64_t kForever = std::numeric_limits<int64_t>::max();
constexpr int64_t kNsPerMs = 1'000'000;

constexpr std::string_view name(Op op) {
  switch (op) {
    case Op::read:
      return "read";
    case Op::write:
      return "write";
    case Op::flush:
      return "flush";
  }
  return "?";
}

constexpr Activity activity(Op op) {
  switch (op) {
    case Op::read:
      return Activity::nvme_read;
    case Op::write:
      return Activity::nvme_write;
    case Op::flush:
      break;
  }
  return Activity::nvme_flush;
}

// "read of 4096 bytes at offset 0 of /a (read for update, master 3)", "flush of /a (journal,
// other)"
std::string text_of(const IoRequest& request, const Transfer& transfer, const std::string& path) {
  const TrafficTag& tag = request.tag;
  const std::string index = tag.index < 0 ? "" : fmt::format(" {}", tag.index);
  const std::string part = transfer.op == Op::flush ? ""
                                                    : fmt::format(" of {} bytes at offset {}",
                                                                  transfer.bytes, transfer.offset);
  return fmt::format("{}{} of {} ({}, {}{})", name(transfer.op), part, path, tag.label,
                     name(tag.kind), index);
}

// Where a transfer may begin and end, in the file as in memory; alignments are powers of two.
uint32_t alignment(const FileSpace& file) {
  return std::max(file.offset_alignment(), file.memory_alignment());
}

[[noreturn]] void refuse(const IoRequest& request, std::string_view why) {
  throw IoError(fmt::format("{} of {} bytes at offset {} of {} refused: {}", name(request.op),
                            request.bytes, request.offset, request.file->path(), why),
                request.file->path(), request.offset, EINVAL);
}

void check(const IoRequest& request) {
  const FileSpace& file = *request.file;
  if (request.op == Op::flush) {
    if (request.bytes != 0) refuse(request, "a flush has no bytes of its own");
    return;
  }
  if (request.offset % file.offset_alignment() != 0 ||
      request.bytes % file.offset_alignment() != 0) {
    refuse(request, fmt::format("not a multiple of {} bytes", file.offset_alignment()));
  }
  if (reinterpret_cast<uintptr_t>(request.data) % file.memory_alignment() != 0) {
    refuse(request, fmt::format("its buffer is not aligned to {} bytes", file.memory_alignment()));
  }
  if (request.offset > file.bytes() || request.bytes > file.bytes() - request.offset) {
    refuse(request, fmt::format("the file ends at {}", file.bytes()));
  }
}

// What `started` amounts to once nothing is left to start.
uint64_t to_start(const IoRequest& request) {
  return request.op == Op::flush ? request.file->files().size() : request.bytes;
}

int64_t deadline_after(std::chrono::milliseconds timeout) {
  const int64_t now = now_ns();
  if (timeout.count() < 0 || timeout.count() > (kForever - now) / kNsPerMs) return kForever;
  return now + timeout.count() * kNsPerMs;
}

std::chrono::milliseconds until(int64_t deadline_ns) {
  if (deadline_ns == kForever) return std::chrono::milliseconds(-1);
  return std::chrono::ceil<std::chrono::milliseconds>(
      std::chrono::nanoseconds(std::max<int64_t>(deadline_ns - now_ns(), 0)));
}

}  // namespace

struct IoEngine::Slot {
  IoRequest* request = nullptr;  // null: the slot is free
  uint64_t number = 0;           // of the transfer, in order of beginning
  const BlockFile* file = nullptr;
  // What is left of the transfer.
  uint64_t offset = 0;
  std::byte* data = nullptr;
  uint32_t bytes = 0;
  uint32_t attempts = 0;  // in a row that moved nothing
  int64_t retry_at_ns = 0;

  Transfer transfer(uint64_t cookie) const {
    return {request->op, file->fd(), offset, data, bytes, cookie};
  }
};

void IoRequest::throw_if_failed() const {
  if (ok()) return;
  const std::string reason =
      error == 0 ? "unexpected end of file" : std::generic_category().message(error);
  throw IoError(fmt::format("{} of {} failed at offset {}: {} (errno {})", name(op),
                            error_file->path(), error_offset, reason, error),
                error_file->path(), error_offset, error);
}

void IoEngine::RequestList::push(IoRequest& request) {
  request.next = nullptr;
  (head == nullptr ? head : tail->next) = &request;
  tail = &request;
}

IoRequest* IoEngine::RequestList::pop() {
  IoRequest* first = head;
  if (first != nullptr) head = first->next;
  return first;
}

IoEngine::IoEngine(std::unique_ptr<IoBackend> backend, const Options& options, TrafficSink& traffic)
    : backend_(std::move(backend)),
      options_(options),
      traffic_(traffic),
      slots_(backend_->max_in_flight()),
      completions_(backend_->max_in_flight()) {
  if (options_.block_bytes < 1 || options_.block_bytes > kMaxTransferBytes) {
    throw ConfigError(fmt::format("an I/O block takes 1 to {} bytes, not {}", kMaxTransferBytes,
                                  options_.block_bytes));
  }
  const auto depth = static_cast<uint32_t>(slots_.size());
  free_slots_.reserve(depth);
  retries_.reserve(depth);
  for (uint32_t i = depth; i-- > 0;) free_slots_.push_back(i);
}

IoEngine::~IoEngine() = default;

void IoEngine::submit(IoRequest& request) {
  check(request);
  request.error = 0;
  request.error_file = request.file->files().data();
  request.error_offset = 0;
  request.done_bytes = 0;
  request.failed = false;
  request.started = 0;
  request.transfers_in_flight = 0;
  request.begin_ns = now_ns();
  ++in_flight_;
  if (request.bytes == 0 && request.op != Op::flush) {
    finish_if_done(request);
    return;
  }
  waiting_.push(request);
  start_waiting();
}

size_t IoEngine::reap(std::span<IoRequest*> out, std::chrono::milliseconds timeout) {
  const int64_t deadline_ns = deadline_after(timeout);
  while (true) {
    collect(finished_.head == nullptr ? deadline_ns : 0);
    size_t count = 0;
    while (count < out.size() && finished_.head != nullptr) out[count++] = finished_.pop();
    in_flight_ -= count;
    // The backend's own wake can be spent on a completion that finishes no request; ours is not.
    const bool woken = woken_.exchange(false);
    if (count > 0 || woken || now_ns() >= deadline_ns) return count;
  }
}

void IoEngine::wake() {
  woken_.store(true);
  backend_->wake();
}

const IoEngine::Slot* IoEngine::oldest_slot() const {
  const Slot* oldest = nullptr;
  for (const Slot& slot : slots_) {
    if (slot.request == nullptr) continue;
    if (oldest == nullptr || slot.number < oldest->number) oldest = &slot;
  }
  return oldest;
}

IoEngine::Oldest IoEngine::oldest() const {
  const Slot* const oldest = oldest_slot();
  if (oldest == nullptr) return {};
  return {oldest->number + 1, oldest->request->op == Op::flush};
}

std::exception_ptr IoEngine::overdue(double seconds) const {
  const Slot* const oldest = oldest_slot();
  if (oldest == nullptr) return nullptr;
  const std::string& path = oldest->file->path();
  return std::make_exception_ptr(
      IoError(fmt::format("for {:.3g} s the disk does not answer the {}", seconds,
                          text_of(*oldest->request, oldest->transfer(0), path)),
              path, oldest->offset, ETIMEDOUT));
}

// One round with the backend; whatever it frees is started again at once.
void IoEngine::collect(int64_t deadline_ns) {
  for (uint32_t index : retries_) {
    deadline_ns = std::min(deadline_ns, slots_[index].retry_at_ns);
  }
  const size_t count = backend_->reap(completions_, until(deadline_ns));
  for (size_t i = 0; i < count; ++i) finish_transfer(completions_[i]);
  start_due_retries();
  start_waiting();
}

void IoEngine::start_waiting() {
  while (waiting_.head != nullptr && !free_slots_.empty()) {
    IoRequest& request = *waiting_.head;
    start_next_transfer(request);
    if (request.started == to_start(request)) waiting_.pop();
  }
}

void IoEngine::start_next_transfer(IoRequest& request) {
  const uint32_t index = free_slots_.back();
  free_slots_.pop_back();
  Slot& slot = slots_[index];
  slot = {.request = &request, .number = transfers_begun_++};
  if (request.started == 0) request.begin_ns = now_ns();
  if (request.op == Op::flush) {
    slot.file = &request.file->files()[request.started++];
  } else {
    const uint32_t unit = alignment(*request.file);
    const uint64_t block = std::max(unit, options_.block_bytes / unit * unit);
    const FileSpace::Run run = request.file->locate(request.offset + request.started);
    slot.file = run.file;
    slot.offset = run.offset;
    slot.data = request.data + request.started;
    slot.bytes =
        static_cast<uint32_t>(std::min({block, run.bytes, request.bytes - request.started}));
    request.started += slot.bytes;
  }
  ++request.transfers_in_flight;
  submit_slot(index);
}

void IoEngine::submit_slot(uint32_t index) { backend_->submit(slots_[index].transfer(index)); }

void IoEngine::finish_transfer(const Completion& completion) {
  const auto index = static_cast<uint32_t>(completion.cookie);
  const Slot& slot = slots_[index];
  const Op op = slot.request->op;
  transfers_done_.store(transfers_done() + 1, std::memory_order_relaxed);
  if (completion.result == -EAGAIN || completion.result == -EINTR) {
    try_again(index, -completion.result);
  } else if (completion.result < 0) {
    fail(index, -completion.result);
  } else if (static_cast<uint32_t>(completion.result) > slot.bytes) {
    fail(index, EIO);  // more than was asked for: whatever moved, it is not our bytes
  } else if (completion.result == 0 && op != Op::flush) {
    fail(index, op == Op::read ? 0 : EIO);
  } else {
    advance(index, static_cast<uint32_t>(completion.result));
  }
}

void IoEngine::advance(uint32_t index, uint32_t moved_bytes) {
  Slot& slot = slots_[index];
  const bool complete = moved_bytes == slot.bytes;
  const uint32_t kept =
      complete ? moved_bytes : moved_bytes - moved_bytes % alignment(*slot.request->file);
  slot.request->done_bytes += kept;
  slot.offset += kept;
  slot.data += kept;
  slot.bytes -= kept;
  if (complete) {
    release(index);
    return;
  }
  if (kept > 0) slot.attempts = 0;
  // Less than a block, again and again, is what a file cut in mid-block looks like.
  try_again(index, slot.request->op == Op::read ? 0 : EIO);
}

// Once the attempts are used up the request fails with `error_number`. Only a busy kernel is given
// time: a short transfer goes on at once.
void IoEngine::try_again(uint32_t index, int error_number) {
  Slot& slot = slots_[index];
  const bool busy = error_number == EAGAIN || error_number == EINTR;
  if (slot.request->failed) {
    release(index);
  } else if (slot.attempts == kMaxAttempts) {
    fail(index, error_number);
  } else if (++slot.attempts == 1 || !busy) {
    submit_slot(index);
  } else {
    const uint32_t doublings = std::min(slot.attempts - 2, kMaxBackoffDoublings);
    slot.retry_at_ns = now_ns() + (kMinBackoffNs << doublings);
    retries_.push_back(index);
  }
}

void IoEngine::start_due_retries() {
  if (retries_.empty()) return;
  const int64_t now = now_ns();
  std::erase_if(retries_, [&](uint32_t index) {
    if (slots_[index].request->failed) {
      release(index);
      return true;
    }
    if (slots_[index].retry_at_ns > now) return false;
    submit_slot(index);
    return true;
  });
}

void IoEngine::fail(uint32_t index, int error_number) {
  const Slot& slot = slots_[index];
  IoRequest& request = *slot.request;
  if (!request.failed) {
    request.failed = true;
    request.error = error_number;
    request.error_file = slot.file;
    request.error_offset = slot.offset;
    // Only the head of the queue has some transfers under way and others not started.
    if (waiting_.head == &request) waiting_.pop();
  }
  release(index);
}

void IoEngine::release(uint32_t index) {
  IoRequest& request = *std::exchange(slots_[index].request, nullptr);
  free_slots_.push_back(index);
  --request.transfers_in_flight;
  finish_if_done(request);
}

// Finished requests left waiting_ before: by failing, or by having all their bytes started.
void IoEngine::finish_if_done(IoRequest& request) {
  if (request.transfers_in_flight > 0) return;
  if (!request.failed && request.started < to_start(request)) return;
  if (request.ok()) {
    traffic_.record({.activity = activity(request.op),
                     .tag = request.tag,
                     .lane = "io",
                     .bytes = request.bytes,
                     .begin_ns = request.begin_ns,
                     .end_ns = now_ns()});
  }
  finished_.push(request);
}

}  // namespace strata::io
