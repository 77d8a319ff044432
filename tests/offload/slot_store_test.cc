#include "offload/slot_store.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "offload/training_state.h"
#include "strata/error.h"
#include "tests/offload/offload_fixture.h"

namespace strata::offload {
namespace {

// 2 + 4 + 4 grains.
TrainingStateSpec three_groups() {
  TrainingStateSpec spec;
  spec.param = Placement({0, 1, 0}, 10);
  spec.optimizer_state = {Placement({0, 0.2, 0.8}, 10), Placement({0, 0, 1}, 10), spec.param};
  spec.grad = spec.param;
  spec.sub_groups = cut_sub_groups(4, {spec.param, spec.grad, spec.optimizer_state});
  spec.slots = 2;
  return spec;
}

// Bytes of a grain, by codec, and of its last disk block's filling.
TEST(SlotLayoutTest, SlotsAreDisjointAndHoldTheNvmeKinds) {
  TrainingStateSpec spec = three_groups();
  for (Codec codec : {Codec::none, Codec::fp32, Codec::bf16, Codec::int8}) {
    spec.codecs = {Codec::split16, codec, Codec::fp32};
    const SlotLayout layout = spec.slot_layout();
    ASSERT_EQ(layout.sub_groups(), 3u);
    uint64_t next = 0;
    for (const SubGroup& group : spec.sub_groups) {
      const int64_t numel = group.grains.numel();
      const bool has_master = group.index > 0;
      const int64_t exp_avg = round_up(stored_bytes(codec, numel), 4096);
      const auto bytes = static_cast<uint64_t>((has_master ? numel * 2 : 0) + exp_avg);
      for (int slot = 0; slot < 2; ++slot) {
        EXPECT_EQ(layout.extent(group.index, slot).offset, next);
        EXPECT_EQ(layout.extent(group.index, slot).bytes, bytes);
        next += bytes;
      }
    }
    EXPECT_EQ(layout.file_bytes(), next);
  }
}

// The journal over a named file that is opened again, as after a kill.
class JournalTest : public testing::Test {
 protected:
  SlotStore open(bool create, int slots = 2) {
    TrainingStateSpec spec = three_groups();
    spec.slots = slots;
    SlotLayout layout = spec.slot_layout();
    const auto file = [&](const char* name, uint64_t bytes) {
      const std::string path = directory_.path() + "/" + name;
      return create ? io::BlockFile::create(path, bytes, {}, log_)
                    : io::BlockFile::open(path, {}, log_);
    };
    SlotStore::Files files{file("state", layout.file_bytes()),
                           file("journal", SlotStore::journal_bytes(layout))};
    return SlotStore(std::move(layout), std::move(files), *pump_,
                     SlotStore::Memory{{staging_.data(), staging_.bytes()}});
  }
  void commit(SlotStore& store, const std::string& payload) {
    store.commit(std::as_bytes(std::span(payload)));
  }
  static std::string text(const JournalRecord& record) {
    return {reinterpret_cast<const char*>(record.payload.data()), record.payload.size()};
  }
  // Flips one bit of the journal file.
  void damage(uint64_t offset) {
    std::FILE* file = std::fopen((directory_.path() + "/journal").c_str(), "r+");
    std::fseek(file, static_cast<long>(offset), SEEK_SET);
    const int byte = std::fgetc(file);
    std::fseek(file, static_cast<long>(offset), SEEK_SET);
    std::fputc(byte ^ 4, file);
    std::fclose(file);
  }

  TemporaryDirectory directory_;
  NullLogSink log_;
  NullTrafficSink traffic_;
  std::unique_ptr<Device> device_ = make_host_device({}, traffic_);
  MemoryBlock staging_ = device_->allocate_pinned(64 << 10);
  std::unique_ptr<Pump> pump_ = make_pump(traffic_);
};

TEST_F(JournalTest, NothingToRecoverAtFirst) { EXPECT_FALSE(open(true).recover().has_value()); }

TEST_F(JournalTest, CommitsFlipSlotsAndSurviveReopening) {
  Extent first;
  {
    SlotStore store = open(true);
    first = store.current(1);
    const Extent other = store.next(1);
    EXPECT_NE(first.offset, other.offset);
    commit(store, "step 1");
    EXPECT_EQ(store.current(1).offset, other.offset);
    EXPECT_EQ(store.next(1).offset, first.offset);
    commit(store, "step 2");
    commit(store, "step 3");
  }
  SlotStore store = open(false);
  const auto record = store.recover();
  ASSERT_TRUE(record.has_value());
  EXPECT_EQ(record->generation, 3u);
  EXPECT_EQ(text(*record), "step 3");
  EXPECT_NE(store.current(1).offset, first.offset);
}

TEST_F(JournalTest, APinnedSlotIsNotWrittenToWhileStepsTakeTurnsInTheOthers) {
  SlotStore store = open(true, /*slots=*/3);
  commit(store, "step 1");
  SlotPin pin(store);
  EXPECT_EQ(pin.slot(), store.current_slot());
  EXPECT_THROW(SlotPin{store}, Error);
  for (int step = 2; step < 7; ++step) {
    ASSERT_TRUE(store.has_next_slot());
    EXPECT_NE(store.next_slot(), pin.slot());
    EXPECT_NE(store.next_slot(), store.current_slot());
    commit(store, "a step");
  }
  pin.release();
  commit(store, "a step");
  EXPECT_EQ(store.next_slot(), pin.slot());
}

TEST_F(JournalTest, OfTwoSlotsThePinnedOneStopsTheSecondStep) {
  SlotStore store = open(true);
  {
    const SlotPin pin(store);
    commit(store, "step 1");
    EXPECT_FALSE(store.has_next_slot());
    EXPECT_THROW(commit(store, "step 2"), Error);
  }
  commit(store, "step 2");
  EXPECT_EQ(store.recover()->generation, 2u);
}

TEST_F(JournalTest, ADamagedRecordFallsBackToTheOneBefore) {
  uint64_t record_bytes = 0;
  {
    SlotStore store = open(true);
    record_bytes = SlotStore::journal_bytes(store.layout()) / 2;
    for (const char* payload : {"step 1", "step 2", "step 3"}) commit(store, payload);
  }
  damage(record_bytes + 45);  // record 3 lies in the second place
  {
    SlotStore store = open(false);
    const auto record = store.recover();
    ASSERT_TRUE(record.has_value());
    EXPECT_EQ(text(*record), "step 2");
  }
  // That a run has come far and nobody knows how far is no beginning.
  damage(45);
  SlotStore store = open(false);
  EXPECT_THROW(store.recover(), CorruptionError);
}

TEST_F(JournalTest, ADamagedFirstRecordIsNone) {
  { open(true).begin(4, {}); }
  damage(45);
  EXPECT_FALSE(open(false).recover().has_value());
}

// With a checksum that holds, a record may still be of another store.
TEST(JournalRecordTest, HasSlotsThatThereAre) {
  const SlotLayout layout = three_groups().slot_layout();
  constexpr size_t kChecksum = 8, kGeneration = 16, kSlotOf = 48;
  std::vector<std::byte> record(SlotStore::journal_bytes(layout) / 2);
  const std::array<uint64_t, 6> header = {0x324e524a41525453, 0, 5, 3, layout.pieces(), 0};
  std::memcpy(record.data(), header.data(), sizeof(header));
  const auto parse = [&](int slot) {
    record[kSlotOf + 2] = static_cast<std::byte>(slot);
    const uint64_t sum = XXH3_64bits(record.data() + kGeneration, record.size() - kGeneration);
    std::memcpy(record.data() + kChecksum, &sum, sizeof(sum));
    return parse_record(record, layout);
  };
  ASSERT_TRUE(parse(1).has_value());
  EXPECT_EQ(parse(1)->slot_of, (std::vector<uint8_t>{0, 0, 1}));
  EXPECT_FALSE(parse(2).has_value());
  EXPECT_FALSE(parse(255).has_value());
  record.pop_back();
  EXPECT_FALSE(parse(1).has_value());
}

TEST_F(JournalTest, APayloadTooLongIsNotRecorded) {
  {
    SlotStore store = open(true);
    commit(store, "step 1");
    const std::string too_long(SlotStore::kMaxPayloadBytes + 1, 'x');
    EXPECT_THROW(commit(store, too_long), Error);
  }
  EXPECT_EQ(text(*open(false).recover()), "step 1");
}

// Of one rank's two newest records it may have to take the older one: the other ranks' newest.
TEST_F(JournalTest, RecoversTheGenerationThatRanksAgreeOn) {
  Extent second, third;
  {
    SlotStore store = open(true);
    commit(store, "step 1");
    commit(store, "step 2");
    second = store.current(1);
    commit(store, "step 3");
    third = store.current(1);
  }
  SlotStore store = open(false);
  ASSERT_EQ(text(*store.recover()), "step 3");
  EXPECT_EQ(store.current(1).offset, third.offset);
  ASSERT_EQ(text(*store.recover(2)), "step 2");
  EXPECT_EQ(store.current(1).offset, second.offset);
  // From there on step 3 is written anew, to the same place.
  EXPECT_EQ(store.next(1).offset, third.offset);
  commit(store, "step 3 again");
  EXPECT_EQ(text(*open(false).recover()), "step 3 again");
  // Older ones are gone.
  EXPECT_FALSE(open(false).recover(1).has_value());
}

// A rank that takes the older one writes over the newer one's state: its record must not count
// again, should another rank come as far in the meantime.
TEST_F(JournalTest, ARecordThatWasGivenUpNeverComesBack) {
  {
    SlotStore store = open(true);
    for (const char* payload : {"step 1", "step 2", "step 3"}) commit(store, payload);
  }
  {
    SlotStore store = open(false);
    ASSERT_EQ(text(*store.recover(2)), "step 2");
  }
  EXPECT_EQ(text(*open(false).recover()), "step 2");
}

TEST_F(JournalTest, BeginsAtAnyGenerationWithoutFlipping) {
  {
    SlotStore store = open(true);
    const Extent first = store.current(1);
    store.begin(17, std::as_bytes(std::span("loaded", 6)));
    EXPECT_EQ(store.current(1).offset, first.offset);
    commit(store, "step 18");
  }
  SlotStore store = open(false);
  EXPECT_EQ(store.recover()->generation, 18u);
  EXPECT_EQ(text(*store.recover(17)), "loaded");
}

// Whatever transfer of a commit fails, the generation before stays whole on disk.
TEST_F(JournalTest, ACommitThatFailsAnywhereLeavesTheGenerationBefore) {
  constexpr int kTransfersOfACommit = 3;  // flush, record, flush
  for (int fails = 0; fails < kTransfersOfACommit; ++fails) {
    // The record before takes as many.
    const io::FaultPlan faults = {.fail_at = kTransfersOfACommit + fails};
    pump_ = make_pump(traffic_, &faults);
    {
      SlotStore store = open(true);
      commit(store, "step 1");
      EXPECT_THROW(commit(store, "step 2"), IoError) << fails;
    }
    pump_ = make_pump(traffic_);
    const auto record = open(/*create=*/false).recover();
    ASSERT_TRUE(record.has_value());
    // The last flush may fail with the record written: then it counts, and so does its state.
    const bool written = fails == kTransfersOfACommit - 1;
    EXPECT_EQ(text(*record), written ? "step 2" : "step 1") << fails;
    for (const char* name : {"state", "journal"}) std::filesystem::remove(directory_.file(name));
  }
}

}  // namespace
}  // namespace strata::offload
