#include "tests/offload/bad_disk.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <optional>

namespace strata::offload {

using io::DiskFault;
using io::Op;

std::string_view name(FaultKind kind) {
  constexpr std::array<std::string_view, 5> kOfKernel = {"EIO", "ENOSPC", "short transfers",
                                                         "EAGAIN, EINTR", "late and shuffled"};
  const auto index = static_cast<size_t>(kind);
  return index < io::kDiskFaultCount ? io::name(static_cast<DiskFault>(index))
                                     : kOfKernel[index - io::kDiskFaultCount];
}

BadDisk::BadDisk(uint64_t seed) : random_(seed), disk_(seed) {
  kernel_.seed = seed;
  kernel_.tally = &tally_;
}

void BadDisk::add(FaultKind kind, const Transfers& transfers) {
  const auto first_life = static_cast<int64_t>(transfers.first_life);
  switch (kind) {
    case FaultKind::error:
      kernel_.fail_at = draw(first_life);
      kernel_.fail_errno = EIO;
      return;
    case FaultKind::no_space:
      do {
        kernel_.fail_at = draw(first_life);
      } while (transfers.all[static_cast<size_t>(kernel_.fail_at)] != Op::write);
      kernel_.fail_errno = ENOSPC;
      return;
    case FaultKind::short_transfers:
      kernel_.short_transfer_permille = 300;
      return;
    case FaultKind::again:
      kernel_.again_permille = 200;
      return;
    case FaultKind::late_and_shuffled:
      kernel_.delay_permille = 300;
      kernel_.max_delay_us = 20;
      kernel_.reorder = true;
      return;
    default:
      add(static_cast<DiskFault>(kind), transfers);
  }
}

void BadDisk::add(DiskFault fault, const Transfers& transfers) {
  const std::optional<Op> op = befalls(fault);
  const auto size = std::ssize(transfers.all);
  const int64_t at = draw(op ? std::ranges::count(transfers.all, *op) : size);
  disk_.plan(fault, at);
  if (fault != DiskFault::lost_flush) return;
  // It shows when the power goes, some time after it.
  int64_t place = 0;
  for (int64_t flushes = 0; flushes <= at; ++place) {
    if (transfers.all[static_cast<size_t>(place)] == Op::flush) ++flushes;
  }
  disk_.plan(DiskFault::power_loss, place + draw(size - place));
}

std::unique_ptr<io::IoBackend> BadDisk::connect() {
  return io::make_fault_backend(disk_.connect(), kernel_);
}

void BadDisk::restore() {
  disk_.restore_power();
  kernel_.fail_at = -1;
}

int64_t BadDisk::fired(FaultKind kind) const {
  switch (kind) {
    case FaultKind::error:
    case FaultKind::no_space:
      return tally_.errors;
    case FaultKind::short_transfers:
      return tally_.short_transfers;
    case FaultKind::again:
      return tally_.again;
    case FaultKind::late_and_shuffled:
      return tally_.delays;
    default:
      return disk_.fired(static_cast<DiskFault>(kind));
  }
}

void OutcomeTable::add(FaultKind kind, bool with_another, int64_t fired, Outcome outcome) {
  Row& row = rows_[with_another ? kFaultKinds : static_cast<size_t>(kind)];
  row.fired += fired;
  ++row.outcomes[static_cast<size_t>(outcome)];
}

OutcomeTable& OutcomeTable::operator+=(const OutcomeTable& other) {
  for (size_t kind = 0; kind < rows_.size(); ++kind) {
    rows_[kind].fired += other.rows_[kind].fired;
    for (size_t i = 0; i < kOutcomes; ++i) {
      rows_[kind].outcomes[i] += other.rows_[kind].outcomes[i];
    }
  }
  return *this;
}

void OutcomeTable::print() const {
  constexpr const char* kFormat = "{:18} {:>9} {:>9} {:>8} {:>10} {:>10} {:>6}\n";
  fmt::print(kFormat, "fault", "fired", "identical", "IoError", "Corruption", "gen before",
             "silent");
  for (size_t kind = 0; kind < rows_.size(); ++kind) {
    const auto& [fired, outcomes] = rows_[kind];
    if (fired == 0) continue;
    fmt::print(kFormat, kind < kFaultKinds ? name(static_cast<FaultKind>(kind)) : "two of these",
               fired, outcomes[0], outcomes[1], outcomes[2], outcomes[3], outcomes[4]);
  }
}

}  // namespace strata::offload
