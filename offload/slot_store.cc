#include "offload/slot_store.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "strata/error.h"

namespace strata::offload {
namespace {

constexpr uint64_t kBlockBytes = 4096;           // records start and end on it
constexpr uint64_t kMagic = 0x4c4e524a41525453;  // "STRAJRNL", little endian

// On disk: header, one byte a sub-group, payload; zeros to the end of the record's place. The
// checksum covers everything after itself.
struct RecordHeader {
  uint64_t magic;
  uint64_t checksum;
  uint64_t generation;
  uint64_t sub_groups;
  uint64_t payload_bytes;
};

uint64_t record_bytes(size_t sub_groups) {
  const uint64_t bytes = sizeof(RecordHeader) + sub_groups + SlotStore::kMaxPayloadBytes;
  return (bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
}

uint64_t checksum_of(std::span<const std::byte> record) {
  constexpr size_t skip = offsetof(RecordHeader, generation);
  return XXH3_64bits(record.data() + skip, record.size() - skip);
}

}  // namespace

SlotLayout::SlotLayout(std::span<const uint64_t> extent_bytes, int slots) : slots_(slots) {
  extents_.reserve(extent_bytes.size());
  for (const uint64_t bytes : extent_bytes) {
    extents_.push_back({file_bytes_, bytes});
    file_bytes_ += bytes * static_cast<uint64_t>(slots);
  }
}

Extent SlotLayout::extent(int32_t sub_group, int slot) const {
  Extent extent = extents_[static_cast<size_t>(sub_group)];
  extent.offset += extent.bytes * static_cast<uint64_t>(slot);
  return extent;
}

uint64_t SlotStore::journal_bytes(const SlotLayout& layout) {
  return layout.slots() == 1 ? 0 : 2 * record_bytes(layout.sub_groups());
}

SlotStore::SlotStore(SlotLayout layout, Files files, Pump& pump, std::span<std::byte> staging)
    : layout_(std::move(layout)),
      files_(std::move(files)),
      pump_(pump),
      staging_(staging),
      slot_of_(layout_.sub_groups(), 0) {
  if (layout_.slots() > 1 &&
      (!files_.journal || staging_.size() < record_bytes(layout_.sub_groups()))) {
    throw Error("a store with two slots needs a journal and staging for one record");
  }
}

std::vector<int> SlotStore::descriptors() const {
  std::vector<int> descriptors;
  for (const io::BlockFile& file : files_.state.files()) descriptors.push_back(file.fd());
  if (files_.journal) descriptors.push_back(files_.journal->fd());
  return descriptors;
}

Extent SlotStore::current(int32_t sub_group) const {
  return layout_.extent(sub_group, slot_of_[static_cast<size_t>(sub_group)]);
}

Extent SlotStore::next(int32_t sub_group) const {
  const int slot = slot_of_[static_cast<size_t>(sub_group)];
  return layout_.extent(sub_group, (slot + 1) % layout_.slots());
}

void SlotStore::commit(std::span<const std::byte> payload) {
  if (layout_.slots() == 1) return;
  pump_.submit({.op = io::Op::flush, .file = &files_.state, .tag = {.label = "flush state"}})
      .wait();
  for (uint8_t& slot : slot_of_) slot ^= 1;
  ++generation_;
  try {
    write_record(payload);
  } catch (...) {
    for (uint8_t& slot : slot_of_) slot ^= 1;
    --generation_;
    throw;
  }
}

void SlotStore::write_record(std::span<const std::byte> payload) {
  if (payload.size() > kMaxPayloadBytes) throw Error("a journal payload is at most 4096 bytes");
  const uint64_t bytes = record_bytes(slot_of_.size());
  const std::span<std::byte> record = staging_.first(bytes);
  std::fill(record.begin(), record.end(), std::byte{0});
  RecordHeader header = {kMagic, 0, generation_, slot_of_.size(), payload.size()};
  std::memcpy(record.data() + sizeof(header), slot_of_.data(), slot_of_.size());
  if (!payload.empty()) {
    std::memcpy(record.data() + sizeof(header) + slot_of_.size(), payload.data(), payload.size());
  }
  std::memcpy(record.data(), &header, sizeof(header));
  header.checksum = checksum_of(record);
  std::memcpy(record.data(), &header, sizeof(header));

  pump_
      .submit({.op = io::Op::write,
               .file = &*files_.journal,
               .offset = (generation_ % 2) * bytes,
               .data = record.data(),
               .bytes = bytes,
               .tag = {.label = "journal"}})
      .wait();
  pump_.submit({.op = io::Op::flush, .file = &*files_.journal, .tag = {.label = "flush journal"}})
      .wait();
}

std::optional<JournalRecord> SlotStore::read_record(int place) {
  const uint64_t bytes = record_bytes(slot_of_.size());
  const std::span<std::byte> record = staging_.first(bytes);
  pump_
      .submit({.op = io::Op::read,
               .file = &*files_.journal,
               .offset = static_cast<uint64_t>(place) * bytes,
               .data = record.data(),
               .bytes = bytes,
               .tag = {.label = "journal"}})
      .wait();
  RecordHeader header;
  std::memcpy(&header, record.data(), sizeof(header));
  const bool valid = header.magic == kMagic && header.sub_groups == slot_of_.size() &&
                     header.payload_bytes <= kMaxPayloadBytes &&
                     header.checksum == checksum_of(record);
  if (!valid) return std::nullopt;
  JournalRecord result;
  result.generation = header.generation;
  result.slot_of.resize(slot_of_.size());
  std::memcpy(result.slot_of.data(), record.data() + sizeof(header), slot_of_.size());
  const auto payload = record.subspan(sizeof(header) + slot_of_.size(), header.payload_bytes);
  result.payload.assign(payload.begin(), payload.end());
  return result;
}

std::optional<JournalRecord> SlotStore::recover(uint64_t newest_generation) {
  if (!files_.journal) return std::nullopt;
  std::optional<JournalRecord> newest;
  for (const int place : {0, 1}) {
    std::optional<JournalRecord> record = read_record(place);
    if (!record || record->generation > newest_generation) continue;
    if (!newest || record->generation > newest->generation) newest = std::move(record);
  }
  if (newest) {
    generation_ = newest->generation;
    slot_of_ = newest->slot_of;
  }
  return newest;
}

}  // namespace strata::offload
