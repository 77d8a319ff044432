#include "offload/slot_store.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "strata/error.h"

namespace strata::offload {
namespace {

constexpr uint64_t kBlockBytes = 4096;           // records start and end on it
constexpr uint64_t kMagic = 0x324e524a41525453;  // "STRAJRN2", little endian

// On disk: header, one byte a sub-group, eight a piece, payload; filling to the end of the
// record's place. The checksum covers everything after itself.
struct RecordHeader {
  uint64_t magic;
  uint64_t checksum;
  uint64_t generation;
  uint64_t sub_groups;
  uint64_t pieces;
  uint64_t payload_bytes;
};

// So that a block which was written, whatever became of it, is told from one that never was.
constexpr std::byte kFilling{0xff};

// Where the parts of a record begin.
struct RecordLayout {
  explicit RecordLayout(const SlotLayout& layout)
      : slots(sizeof(RecordHeader)),
        sums(slots + layout.sub_groups()),
        payload(sums + layout.pieces() * sizeof(uint64_t)),
        bytes((payload + SlotStore::kMaxPayloadBytes + kBlockBytes - 1) / kBlockBytes *
              kBlockBytes) {}

  size_t slots, sums, payload, bytes;
};

uint64_t checksum_of(std::span<const std::byte> record) {
  constexpr size_t skip = offsetof(RecordHeader, generation);
  return XXH3_64bits(record.data() + skip, record.size() - skip);
}

// Never written.
bool is_blank(std::span<const std::byte> record) {
  return std::ranges::all_of(record, [](std::byte byte) { return byte == std::byte{0}; });
}

}  // namespace

std::optional<JournalRecord> parse_record(std::span<const std::byte> bytes,
                                          const SlotLayout& layout) {
  const RecordLayout at(layout);
  if (bytes.size() < at.bytes) return std::nullopt;
  const std::span<const std::byte> record = bytes.first(at.bytes);
  RecordHeader header;
  std::memcpy(&header, record.data(), sizeof(header));
  const bool valid = header.magic == kMagic && header.sub_groups == layout.sub_groups() &&
                     header.pieces == layout.pieces() &&
                     header.payload_bytes <= SlotStore::kMaxPayloadBytes &&
                     header.checksum == checksum_of(record);
  if (!valid) return std::nullopt;
  JournalRecord result;
  result.generation = header.generation;
  result.slot_of.resize(layout.sub_groups());
  std::memcpy(result.slot_of.data(), record.data() + at.slots, result.slot_of.size());
  const bool has_slots = std::all_of(result.slot_of.begin(), result.slot_of.end(),
                                     [&](uint8_t slot) { return slot < layout.slots(); });
  if (!has_slots) return std::nullopt;
  result.sums.resize(layout.pieces());
  std::memcpy(result.sums.data(), record.data() + at.sums, layout.pieces() * sizeof(uint64_t));
  const auto payload = record.subspan(at.payload, header.payload_bytes);
  result.payload.assign(payload.begin(), payload.end());
  return result;
}

uint64_t SlotStore::journal_bytes(const SlotLayout& layout) {
  return layout.slots() == 1 ? 0 : 2 * RecordLayout(layout).bytes;
}

SlotStore::SlotStore(SlotLayout layout, Files files, Pump& pump, const Memory& memory)
    : layout_(std::move(layout)),
      files_(std::move(files)),
      pump_(pump),
      memory_(memory),
      sums_(layout_, files_.state.path(), memory.checksums) {
  if (layout_.slots() > 1 &&
      (!files_.journal || memory_.record.size() < RecordLayout(layout_).bytes)) {
    throw Error("a store with several slots needs a journal and memory for one record");
  }
  choose_next_slot();
}

// The first behind the current one, in turn. A single slot is written in place.
void SlotStore::choose_next_slot() {
  const int slots = layout_.slots();
  next_ = slots == 1 ? 0 : kNone;
  for (int i = slots - 1; i > 0; --i) {
    const int slot = (slot_ + i) % slots;
    if (slot != pinned_slot_) next_ = slot;
  }
}

int SlotStore::pin() {
  require(layout_.slots() > 1 && pinned_slot_ == kNone, "one slot is pinned at a time, of several");
  pinned_slot_ = slot_;
  return pinned_slot_;
}

// What a step is being written to stays.
void SlotStore::unpin() {
  pinned_slot_ = kNone;
  if (!has_next_slot()) choose_next_slot();
}

void SlotStore::seal(int32_t sub_group, int slot, uint64_t offset,
                     std::span<const std::byte> data) {
  sums_.seal(sub_group, slot, offset, data);
}

void SlotStore::check(int32_t sub_group, int slot, uint64_t offset,
                      std::span<const std::byte> data) const {
  sums_.check(sub_group, slot, offset, data);
}

void SlotStore::erase_records() {
  if (!files_.journal) return;
  std::ranges::fill(memory_.record, std::byte{0});
  for (const uint64_t place : {0, 1}) transfer_record(io::Op::write, place);
  flush(*files_.journal, "flush journal");
}

void SlotStore::begin(uint64_t generation, std::span<const std::byte> payload) {
  if (layout_.slots() == 1) return;
  flush(files_.state, "flush state");
  generation_ = generation;
  write_record(payload, Account::step);
}

void SlotStore::advance() {
  if (layout_.slots() == 1) return;
  require(has_next_slot(), "a step was written and had no slot");
  slot_ = next_slot();
  choose_next_slot();
  ++generation_;
  promised_bytes_ += RecordLayout(layout_).bytes;
}

void SlotStore::make_durable(std::span<const std::byte> payload) {
  if (layout_.slots() == 1) return;
  flush(files_.state, "flush state");
  write_record(payload, Account::update);
}

void SlotStore::commit(std::span<const std::byte> payload) {
  advance();
  make_durable(payload);
}

void SlotStore::write_record(std::span<const std::byte> payload, Account account) {
  if (payload.size() > kMaxPayloadBytes) throw Error("a journal payload is at most 4096 bytes");
  const RecordLayout at(layout_);
  const std::span<std::byte> record = memory_.record.first(at.bytes);
  std::ranges::fill(record, kFilling);
  RecordHeader header = {kMagic,        0, generation_, layout_.sub_groups(), layout_.pieces(),
                         payload.size()};
  std::memset(record.data() + at.slots, current_slot(), layout_.sub_groups());
  const std::span<const uint64_t> sums = sums_.of_slot(current_slot());
  std::memcpy(record.data() + at.sums, sums.data(), sums.size_bytes());
  if (!payload.empty()) std::memcpy(record.data() + at.payload, payload.data(), payload.size());
  std::memcpy(record.data(), &header, sizeof(header));
  header.checksum = checksum_of(record);
  std::memcpy(record.data(), &header, sizeof(header));
  transfer_record(io::Op::write, generation_, account);
  flush(*files_.journal, "flush journal");
}

void SlotStore::transfer_record(io::Op op, uint64_t generation, Account account) {
  const uint64_t bytes = RecordLayout(layout_).bytes;
  pump_
      .submit({.op = op,
               .file = &*files_.journal,
               .offset = (generation % 2) * bytes,
               .data = memory_.record.data(),
               .bytes = bytes,
               .tag = {.label = "journal", .account = account}})
      .wait();
}

void SlotStore::flush(const io::FileSpace& file, const char* label) {
  pump_.submit({.op = io::Op::flush, .file = &file, .tag = {.label = label}}).wait();
}

std::optional<JournalRecord> SlotStore::read_record(uint64_t place) {
  transfer_record(io::Op::read, place);
  return parse_record(memory_.record, layout_);
}

std::optional<JournalRecord> SlotStore::recover(uint64_t newest_generation) {
  if (!files_.journal) return std::nullopt;
  std::optional<JournalRecord> newest;
  std::optional<uint64_t> too_new;
  int damaged = 0;
  for (const uint64_t place : {0, 1}) {
    std::optional<JournalRecord> record = read_record(place);
    if (!record) {
      if (!is_blank(memory_.record.first(RecordLayout(layout_).bytes))) ++damaged;
      continue;
    }
    if (record->generation > newest_generation) {
      too_new = record->generation;
    } else if (!newest || record->generation > newest->generation) {
      newest = std::move(record);
    }
  }
  // Whoever was stopped while the first was written leaves the other blank.
  if (damaged == 2) {
    throw CorruptionError(fmt::format(
        "'{}' at byte 0: both records of the journal are damaged, and nothing tells which state "
        "counts: resume from a checkpoint",
        files_.journal->path()));
  }
  if (newest && too_new) {
    std::ranges::fill(memory_.record, kFilling);
    transfer_record(io::Op::write, *too_new);
    flush(*files_.journal, "flush journal");
  }
  if (newest) put_in_force(*newest);
  return newest;
}

void SlotStore::put_in_force(const JournalRecord& record) {
  generation_ = record.generation;
  slot_ = record.slot_of.empty() ? 0 : record.slot_of.front();
  choose_next_slot();
  sums_.forget();
  for (size_t group = 0; group < layout_.sub_groups(); ++group) {
    sums_.restore(static_cast<int32_t>(group), slot_, record.sums);
  }
}

}  // namespace strata::offload
