// A disk on a bad day, from a seed.
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <random>
#include <stdexcept>
#include <vector>

#include "io/io_backend.h"
#include "strata/clock.h"

namespace strata::io {
namespace {

constexpr uint32_t kDirectBlockBytes = 4096;
constexpr std::byte kPoison{0xA5};
constexpr std::chrono::milliseconds kHangPoll(2);

class FaultBackend final : public IoBackend {
 public:
  FaultBackend(std::unique_ptr<IoBackend> inner, const FaultPlan& plan)
      : inner_(std::move(inner)),
        plan_(plan),
        tally_(plan.tally == nullptr ? own_tally_ : *plan.tally),
        random_(plan.seed),
        shuffle_(plan.seed + 1),
        entries_(inner_->max_in_flight()),
        reaped_(inner_->max_in_flight()) {
    free_.reserve(entries_.size());
    pending_.reserve(entries_.size());
    for (size_t i = entries_.size(); i-- > 0;) free_.push_back(i);
  }

  void attach(const IoResources& resources) override { inner_->attach(resources); }
  void submit(const Transfer& transfer) override;
  size_t reap(std::span<Completion> out, std::chrono::milliseconds timeout) override;
  void wake() override { inner_->wake(); }
  uint32_t max_in_flight() const override { return inner_->max_in_flight(); }
  std::string name() const override { return "faulty(" + inner_->name() + ")"; }

 private:
  // One transfer as its caller sees it.
  struct Entry {
    Transfer transfer;
    uint32_t reported_bytes = 0;  // a short transfer's count; 0: what really happened
    int64_t hold_ns = 0;
  };
  struct Pending {
    size_t entry = 0;
    int32_t result = 0;
    int64_t due_ns = 0;
  };

  bool chance(int permille) { return static_cast<int>(random_() % 1000) < permille; }
  int injected_error();
  bool hangs(Op op);
  void start_hung();
  void shorten(Entry& entry, Transfer& transfer);
  void settle(size_t entry_index, int32_t result);
  std::chrono::milliseconds until_due(std::chrono::milliseconds timeout) const;

  const std::unique_ptr<IoBackend> inner_;
  const FaultPlan plan_;
  FaultTally own_tally_;
  FaultTally& tally_;
  std::mt19937_64 random_;   // drawn from at each submission, so that faults do not depend on time
  std::mt19937_64 shuffle_;  // when completions are there
  int64_t submitted_ = 0;
  int64_t submitted_of_hang_ = 0;  // of its kind
  std::optional<Transfer> hung_;   // not given to the inner backend yet
  std::vector<Entry> entries_;     // the inner backend's cookies are indices into it
  std::vector<size_t> free_;
  std::vector<Pending> pending_;  // done, not handed out
  std::vector<Completion> reaped_;
};

void FaultBackend::submit(const Transfer& transfer) {
  if (free_.empty()) throw std::logic_error("more transfers than the depth");
  const size_t index = free_.back();
  free_.pop_back();
  Entry& entry = entries_[index];
  entry = {.transfer = transfer};
  if (chance(plan_.delay_permille)) {
    ++tally_.delays;
    entry.hold_ns =
        static_cast<int64_t>(random_() % static_cast<uint64_t>(plan_.max_delay_us)) * 1000;
  }
  const int error_number = injected_error();
  if (error_number != 0) {
    settle(index, -error_number);
    return;
  }
  Transfer real = transfer;
  real.cookie = index;
  if (transfer.op != Op::flush && transfer.bytes > 1 && chance(plan_.short_transfer_permille)) {
    shorten(entry, real);
  }
  if (hangs(transfer.op)) {
    hung_ = real;
  } else {
    inner_->submit(real);
  }
}

bool FaultBackend::hangs(Op op) {
  return plan_.hang && op == plan_.hang->op && submitted_of_hang_++ == plan_.hang->at;
}

void FaultBackend::start_hung() {
  if (!hung_ || !plan_.hang->until->load()) return;
  inner_->submit(*hung_);
  hung_.reset();
}

int FaultBackend::injected_error() {
  int error_number = 0;
  if (submitted_++ == plan_.fail_at) {
    error_number = plan_.fail_errno;
  } else if (chance(plan_.error_permille)) {
    error_number = EIO;
  } else if (chance(plan_.again_permille)) {
    ++tally_.again;
    return random_() % 2 == 0 ? EAGAIN : EINTR;
  }
  if (error_number != 0) ++tally_.errors;
  return error_number;
}

void FaultBackend::shorten(Entry& entry, Transfer& transfer) {
  ++tally_.short_transfers;
  entry.reported_bytes = static_cast<uint32_t>(1 + random_() % (transfer.bytes - 1));
  transfer.bytes = entry.reported_bytes;
  // Direct I/O moves whole blocks only, as a real disk would when it reports half a one.
  if ((::fcntl(transfer.fd, F_GETFL) & O_DIRECT) != 0) {
    const uint32_t blocks = (transfer.bytes + kDirectBlockBytes - 1) / kDirectBlockBytes;
    transfer.bytes = std::min(blocks * kDirectBlockBytes, entry.transfer.bytes);
  }
}

void FaultBackend::settle(size_t entry_index, int32_t result) {
  const Entry& entry = entries_[entry_index];
  const uint32_t reported = entry.reported_bytes;
  if (reported > 0 && result >= static_cast<int32_t>(reported)) {
    result = static_cast<int32_t>(reported);
    if (entry.transfer.op == Op::read) {
      std::fill(entry.transfer.data + reported, entry.transfer.data + entry.transfer.bytes,
                kPoison);
    }
  }
  pending_.push_back({entry_index, result, now_ns() + entry.hold_ns});
}

size_t FaultBackend::reap(std::span<Completion> out, std::chrono::milliseconds timeout) {
  start_hung();
  const size_t reaped = inner_->reap(reaped_, until_due(timeout));
  for (size_t i = 0; i < reaped; ++i) settle(reaped_[i].cookie, reaped_[i].result);

  if (plan_.reorder) std::shuffle(pending_.begin(), pending_.end(), shuffle_);
  const int64_t now = now_ns();
  size_t count = 0;
  std::erase_if(pending_, [&](const Pending& pending) {
    if (count == out.size() || pending.due_ns > now) return false;
    out[count++] = {entries_[pending.entry].transfer.cookie, pending.result};
    free_.push_back(pending.entry);
    return true;
  });
  return count;
}

// How long the inner backend may wait before something here is due.
std::chrono::milliseconds FaultBackend::until_due(std::chrono::milliseconds timeout) const {
  if (hung_ && (timeout < std::chrono::milliseconds(0) || timeout > kHangPoll)) timeout = kHangPoll;
  if (pending_.empty()) return timeout;
  const auto earliest =
      std::min_element(pending_.begin(), pending_.end(),
                       [](const Pending& a, const Pending& b) { return a.due_ns < b.due_ns; });
  const auto wait = std::chrono::ceil<std::chrono::milliseconds>(
      std::chrono::nanoseconds(std::max<int64_t>(earliest->due_ns - now_ns(), 0)));
  return timeout.count() < 0 ? wait : std::min(wait, timeout);
}

}  // namespace

std::unique_ptr<IoBackend> make_fault_backend(std::unique_ptr<IoBackend> inner,
                                              const FaultPlan& plan) {
  return std::make_unique<FaultBackend>(std::move(inner), plan);
}

}  // namespace strata::io
