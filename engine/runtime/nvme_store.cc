#include "engine/runtime/nvme_store.h"

#include <fmt/format.h>

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "io/io_engine.h"
#include "io/striped_file.h"

namespace strata::engine {
namespace {

constexpr size_t kPumpRequests = 256;

std::unique_ptr<io::IoEngine> make_io_engine(const Config& config, const NvmeStore::Parts& parts) {
  io::IoEngine::Options options;
  options.block_bytes = config.io_block_bytes;
  return std::make_unique<io::IoEngine>(make_io_backend(config, parts.disturbance, parts.log),
                                        options, parts.traffic);
}

}  // namespace

NvmeStore::NvmeStore(const Plan& plan, const Config& config, const Parts& parts,
                     offload::TierManager& tiers)
    : plan_(plan),
      config_(config),
      tiers_(tiers),
      journal_record_(tiers.claim(reserved::kJournalRecord)),
      pump_(make_io_engine(config, parts), kPumpRequests),
      slots_(plan.state.slot_layout(), make_files(parts), pump_,
             std::span<std::byte>(journal_record_.data(), journal_record_.bytes())) {}

offload::SlotStore::Files NvmeStore::make_files(const Parts& parts) {
  const io::BlockFileOptions options = block_file_options(config_);
  const offload::SlotLayout layout = plan_.state.slot_layout();
  const uint64_t state_bytes = layout.file_bytes();
  offload::SlotStore::Files files{
      io::StripedFile::create_scratch(
          make_stripes(config_, parts.disturbance, state_bytes, parts.log), state_bytes, options,
          parts.log),
      {}};
  tiers_.claim_disk(reserved::kStateFile, files.state.bytes());
  if (const uint64_t journal_bytes = offload::SlotStore::journal_bytes(layout)) {
    files.journal = io::BlockFile::create_scratch(config_.nvme_paths.front(), journal_bytes,
                                                  options, parts.log);
    tiers_.claim_disk(reserved::kJournalFile, journal_bytes);
  }
  return files;
}

void NvmeStore::attach() {
  io::IoResources resources = {.files = slots_.descriptors()};
  std::vector<std::string> names = {reserved::kTransfer, reserved::kJournalRecord};
  for (const Reservation& staging : offload::reservations_for(plan_.staging)) {
    names.push_back(staging.name);
  }
  for (const std::string& name : names) {
    const std::span<std::byte> memory = tiers_.claimed(name);
    if (!memory.empty()) resources.buffers.push_back(memory);
  }
  pump_.attach(resources);
}

std::string NvmeStore::description() const {
  return fmt::format("nvme: {} ({}, {}), {} sub-groups, {} slot{}", pump_.engine_name(),
                     slots_.file().direct() ? "O_DIRECT" : "buffered",
                     describe_paths(config_, slots_.file()), plan_.summary.sub_groups,
                     plan_.state.slots, plan_.state.slots == 1 ? "" : "s");
}

}  // namespace strata::engine
