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
      stripes_(make_stripes(config, parts.disturbance,
                            plan.summary.needed_bytes[static_cast<size_t>(Tier::nvme)], parts.log)),
      pump_(make_io_engine(config, parts), kPumpRequests) {
  if (plan.state.uses_nvme()) make_slots(parts);
  for (StateKind kind : offload::kFileKinds) {
    const uint64_t bytes = offload::shard_file_bytes(plan.state, kind);
    if (bytes == 0) continue;
    shard_files_[static_cast<size_t>(kind)] =
        make_file(offload::shard_file_name(kind).c_str(), bytes, parts);
  }
  const uint64_t activation_bytes = tiers.reserved_bytes(reserved::kActivationFile);
  if (activation_bytes > 0) {
    activations_ = make_file(reserved::kActivationFile, activation_bytes, parts);
  }
}

io::StripedFile NvmeStore::make_file(const char* name, uint64_t bytes, const Parts& parts) {
  io::StripedFile file =
      io::StripedFile::create_scratch(stripes_, bytes, block_file_options(config_), parts.log);
  note(file, name);
  return file;
}

void NvmeStore::note(const io::StripedFile& file, const char* name) {
  tiers_.claim_disk(name, file.bytes());
  for (const io::BlockFile& part : file.files()) descriptors_.push_back(part.fd());
  direct_ = direct_ && file.direct();
  paths_ = describe_paths(config_, file);
}

void NvmeStore::make_slots(const Parts& parts) {
  const offload::SlotLayout layout = plan_.state.slot_layout();
  offload::SlotStore::Files files = slot_files(layout, parts);
  note(files.state, reserved::kStateFile);
  if (files.journal) {
    tiers_.claim_disk(reserved::kJournalFile, files.journal->bytes());
    descriptors_.push_back(files.journal->fd());
  }
  slots_.emplace(layout, std::move(files), pump_,
                 offload::SlotStore::Memory{{journal_record_.data(), journal_record_.bytes()},
                                            config_.checksums});
}

offload::SlotStore::Files NvmeStore::slot_files(const offload::SlotLayout& layout,
                                                const Parts& parts) {
  const io::BlockFileOptions options = block_file_options(config_);
  const uint64_t journal_bytes = offload::SlotStore::journal_bytes(layout);
  if (StateDirectory* const directory = parts.state_directory) {
    has_old_state_ = directory->has_files();
    StateDirectory::Files files =
        has_old_state_ ? directory->open(layout.file_bytes(), journal_bytes, parts.state_hash,
                                         options, parts.log)
                       : directory->create(stripes_, layout.file_bytes(), journal_bytes,
                                           parts.state_hash, options, parts.log);
    return {std::move(files.state), std::move(files.journal)};
  }
  offload::SlotStore::Files files{
      io::StripedFile::create_scratch(stripes_, layout.file_bytes(), options, parts.log), {}};
  if (journal_bytes > 0) {
    files.journal = io::BlockFile::create_scratch(config_.nvme_paths.front(), journal_bytes,
                                                  options, parts.log);
  }
  return files;
}

void NvmeStore::attach() {
  io::IoResources resources = {.files = descriptors_};
  std::vector<std::string> names = {reserved::kTransfer,      reserved::kCheckpointTransfer,
                                    reserved::kJournalRecord, reserved::kParameterRing,
                                    reserved::kGradientRing,  reserved::kActivationRing};
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
                     direct_ ? "O_DIRECT" : "buffered", paths_, plan_.summary.sub_groups,
                     plan_.state.slots, plan_.state.slots == 1 ? "" : "s");
}

}  // namespace strata::engine
