// A record of the slots' journal: as it is, and with the checksum that it lacks, so that what lies
// behind the checksum is read too.
#include <xxhash.h>

#include <cstring>
#include <span>
#include <string>

#include "engine/checkpoint/run_state.h"
#include "offload/slot_store.h"
#include "tests/fuzz/fuzz_target.h"

namespace strata::fuzzing {
namespace {

constexpr size_t kChecksumAt = 8;  // of everything after itself
constexpr int kSlots = 2;

const offload::SlotLayout& layout() {
  static const offload::SlotLayout layout({{{8192, 4096}}, {}, {{4096, 4096}, {12288, 8192}}},
                                          kSlots);
  return layout;
}

void read(std::span<const std::byte> bytes) {
  const auto record = offload::parse_record(bytes, layout());
  if (!record) return;
  expect(record->slot_of.size() == layout().sub_groups() &&
             record->sums.size() == layout().pieces() &&
             record->payload.size() <= offload::SlotStore::kMaxPayloadBytes,
         "a record of another layout");
  for (size_t group = 0; group < record->slot_of.size(); ++group) {
    const auto extent = layout().extent(static_cast<int32_t>(group), record->slot_of[group]);
    expect(extent.offset + extent.bytes <= layout().file_bytes(), "a slot outside of the file");
  }
  engine::decode(record->payload);
}

}  // namespace

void fuzz(std::string_view input) {
  read(std::as_bytes(std::span(input)));
  std::string record(input);
  record.resize(offload::SlotStore::journal_bytes(layout()) / 2);
  const size_t summed = kChecksumAt + sizeof(uint64_t);
  const uint64_t checksum = XXH3_64bits(record.data() + summed, record.size() - summed);
  std::memcpy(record.data() + kChecksumAt, &checksum, sizeof(checksum));
  read(std::as_bytes(std::span(record)));
}

}  // namespace strata::fuzzing
