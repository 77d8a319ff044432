#include "strata/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/config/option_table.h"
#include "strata/error.h"
#include "strata/grain.h"

namespace strata {
namespace {

// Checks the keys of a draft against each other and fills what depends on several.
class Resolver {
 public:
  Resolver(ConfigDraft& draft, const std::string& source, int world_size)
      : draft_(draft), config_(draft.config), source_(source), world_size_(world_size) {}

  void resolve() {
    resolve_batch();
    resolve_optimizer();
    resolve_schedule();
    check_parameter_groups();
    resolve_dtype();
    resolve_codecs();
    config_.sub_group_numel =
        std::max<int64_t>(1, draft_.sub_group_size / kGrainNumel) * kGrainNumel;
    resolve_gather_bounds();
    resolve_placement();
    resolve_slots();
    resolve_pinning();
    resolve_speculation();
    resolve_io();
  }

 private:
  [[noreturn]] void fail(const std::string& sentence) const {
    throw ConfigError(source_ + ": " + sentence);
  }

  // As DeepSpeed: any two give the third, a missing accumulation is 1, and the product must hold.
  void resolve_batch() {
    const int64_t world = world_size_;
    std::optional<int64_t> train = draft_.train_batch;
    std::optional<int64_t> micro = draft_.micro_batch;
    std::optional<int64_t> steps = draft_.accumulation_steps;
    if (!train && !micro) {
      fail(
          "the batch size is missing: give \"train_micro_batch_size_per_gpu\" or "
          "\"train_batch_size\" as an integer");
    }
    if (!steps) steps = train && micro ? std::max<int64_t>(1, *train / (*micro * world)) : 1;
    if (!micro) micro = std::max<int64_t>(1, *train / (*steps * world));
    const int64_t product = *micro * *steps * world;
    if (!train) train = product;
    if (*train != product) {
      fail(
          fmt::format("\"train_batch_size\" is {}, but \"train_micro_batch_size_per_gpu\" {} x "
                      "\"gradient_accumulation_steps\" {} x world size {} = {}: change one of them",
                      *train, *micro, *steps, world, product));
    }
    config_.world_size = world_size_;
    config_.micro_batch = *micro;
    config_.accumulation_steps = *steps;
  }

  void resolve_optimizer() {
    if (draft_.optimizer_given && !draft_.optimizer_type) {
      fail("\"optimizer.type\" is missing: write \"AdamW\"");
    }
    OptimizerConfig& optimizer = config_.optimizer;
    optimizer.kind = draft_.optimizer_type.value_or(OptimizerKind::adamw);
    if (optimizer.kind == OptimizerKind::adam && draft_.adam_w_mode) {
      optimizer.kind = OptimizerKind::adamw;
    }
    const bool is_sgd = optimizer.kind == OptimizerKind::sgd;
    const bool is_lion = optimizer.kind == OptimizerKind::lion;
    require_unused(draft_.betas_given && !has_betas(optimizer.kind), "betas");
    require_unused(draft_.eps_given && (is_sgd || is_lion), "eps");
    require_unused(draft_.momentum_given && !is_sgd, "momentum");
  }

  void require_unused(bool given, const char* key) const {
    if (!given) return;
    fail(fmt::format("\"optimizer.params.{}\" means nothing to {}: remove it", key,
                     name(config_.optimizer.kind)));
  }

  void resolve_codecs() const {
    if (config_.master_codec == Codec::split16 && config_.dtype != DType::bf16) {
      fail(
          fmt::format("\"strata.master_codec\" is \"split16\", which keeps the rest that bf16 "
                      "parameters leave, "
                      "and parameters are {}: train in bf16, or write \"fp32\"",
                      name(config_.dtype)));
    }
  }

  void resolve_schedule() {
    const std::string complaint = strata::resolve_schedule(draft_);
    if (!complaint.empty()) fail(complaint);
  }

  void check_parameter_groups() const {
    for (size_t i = 0; i < config_.parameter_groups.size(); ++i) {
      if (!config_.parameter_groups[i].match.empty()) continue;
      fail(
          fmt::format("\"strata.parameter_groups[{}].match\" is missing: list patterns of its "
                      "parameters' names, like \"*.bias\"",
                      i));
    }
  }

  void resolve_dtype() {
    const bool bf16 = draft_.bf16 || draft_.bfloat16;
    if (bf16 && draft_.fp16) {
      fail("\"fp16.enabled\" and \"bf16.enabled\" are both true: switch one of them off");
    }
    config_.dtype = bf16 ? DType::bf16 : draft_.fp16 ? DType::fp16 : DType::fp32;
  }

  void resolve_gather_bounds() {
    const auto pick = [this](const std::array<std::optional<int64_t>, 2>& given, const char* key,
                             int64_t fallback) {
      if (given[0] && given[1] && *given[0] != *given[1]) {
        fail(
            fmt::format("\"zero_optimization.stage3_{}\" is {} but \"zero_optimization.{}\" is "
                        "{}, and both mean the same: keep one of them",
                        key, *given[0], key, *given[1]));
      }
      return given[0].value_or(given[1].value_or(fallback));
    };
    config_.max_live_numel = pick(draft_.max_live, "max_live_parameters", config_.max_live_numel);
    config_.prefetch_numel = pick(draft_.prefetch, "prefetch_bucket_size", config_.prefetch_numel);
    config_.persistent_numel = pick(draft_.persistence, "param_persistence_threshold",
                                    config_.stage == 3 ? ConfigDraft::kPersistence : 0);
  }

  static TierFractions whole(OffloadDevice device, double ratio) {
    switch (device) {
      case OffloadDevice::none:
        return {.device = 1};
      case OffloadDevice::cpu:
        return {.device = 1 - ratio, .host = ratio};
      case OffloadDevice::nvme:
        return {.nvme = 1};
    }
    return {};
  }

  void resolve_placement() {
    if (draft_.offload_optimizer == OffloadDevice::nvme && draft_.ratio != 1) {
      fail(
          "\"zero_optimization.offload_optimizer.ratio\" splits the update between device and "
          "host: with \"device\": \"nvme\" leave it out and use \"strata.placement\"");
    }
    config_.param = placement_of(StateKind::param, whole(draft_.offload_param, 1));
    config_.grad = placement_of(StateKind::grad, {.host = 1});
    config_.activation =
        placement_of(StateKind::activation,
                     whole(draft_.cpu_checkpointing ? OffloadDevice::cpu : OffloadDevice::none, 1));
    const auto codecs = codecs_of(config_);
    for (size_t i = 0; i < kOptimizerKindCount; ++i) {
      const StateKind kind = kOptimizerKinds[i];
      config_.optimizer_state[i] =
          placement_of(kind, whole(draft_.offload_optimizer, draft_.ratio));
      if (codecs[i] != Codec::none) continue;
      if (draft_.placement_given[static_cast<size_t>(kind)]) {
        fail(fmt::format("\"strata.placement.{}\": {} keeps no {}: remove it", name(kind),
                         name(config_.optimizer.kind), name(kind)));
      }
      config_.optimizer_state[i] = config_.optimizer_state[0];
    }
    check_stage();
    check_device_parts();
    require_nvme_path();
  }

  void check_stage() const {
    if (config_.stage == 3 || config_.param.device == 1) return;
    fail(fmt::format(
        "\"zero_optimization.stage\" is {}, which keeps all parameters on the device, and "
        "parameters are to live elsewhere: use stage 3, or leave \"offload_param\" and "
        "\"strata.placement.param\" out",
        config_.stage));
  }

  // The placement asked for under "strata", or what the offload keys say.
  TierFractions placement_of(StateKind kind, TierFractions offload) const {
    const auto index = static_cast<size_t>(kind);
    if (!draft_.placement_given[index]) return offload;
    const TierFractions parts = draft_.placement_fractions[index];
    const double sum = parts.device + parts.host + parts.nvme;
    constexpr double kSlack = 1e-6;  // 0.33 + 0.33 + 0.34 in binary
    if (std::abs(sum - 1) > kSlack) {
      fail(
          fmt::format("\"strata.placement.{}\": device {} + host {} + nvme {} = {}: the parts "
                      "must add up to 1",
                      name(kind), parts.device, parts.host, parts.nvme, sum));
    }
    return parts;
  }

  // The update of an element happens where all of its state is: on the device or on the host.
  void check_device_parts() const {
    const auto& state = config_.optimizer_state;
    for (size_t i = 1; i < kOptimizerKindCount; ++i) {
      if (state[i].device == state[0].device) continue;
      fail(fmt::format(
          "\"strata.placement\": the device holds {} of {} but {} of {}, and an update "
          "needs them in one place: make the device parts of master, exp_avg and "
          "exp_avg_sq equal",
          state[0].device, name(kOptimizerKinds[0]), state[i].device, name(kOptimizerKinds[i])));
    }
  }

  void require_nvme_path() {
    const auto is_there = [](const TierFractions& parts) { return parts.nvme > 0; };
    const auto& state = config_.optimizer_state;
    const std::string what = std::any_of(state.begin(), state.end(), is_there)
                                 ? "optimizer state is"
                             : is_there(config_.param)      ? "parameters are"
                             : is_there(config_.grad)       ? "gradients are"
                             : is_there(config_.activation) ? "activations are"
                                                            : "";
    if (what.empty()) return;
    const auto& paths = draft_.nvme_paths;
    const auto& param_paths = draft_.param_nvme_paths;
    if (!paths.empty() && !param_paths.empty() && paths != param_paths) {
      fail(
          "\"zero_optimization.offload_param.nvme_path\" and "
          "\"zero_optimization.offload_optimizer.nvme_path\" differ, and all files are in one "
          "list of directories: give both the same, or one of them");
    }
    if (paths.empty() && param_paths.empty()) {
      fail(
          fmt::format("\"zero_optimization.offload_optimizer.nvme_path\" is missing: {} to live "
                      "on nvme, so name a directory for its files",
                      what));
    }
    config_.nvme_paths = paths.empty() ? param_paths : paths;
    check_nvme_weights();
  }

  void check_nvme_weights() const {
    const size_t weights = config_.nvme_weights.size();
    const size_t paths = config_.nvme_paths.size();
    if (weights == 0 || weights == paths) return;
    fail(
        fmt::format("\"strata.nvme_weights\" has {} and "
                    "\"zero_optimization.offload_optimizer.nvme_path\" {} entries: give each "
                    "directory one weight",
                    weights, paths));
  }

  // "auto" pins where a person gave a budget for it and said nothing else of where state lives. Two
  // slots are asked for to have all of the state on disk.
  void resolve_pinning() {
    const bool placed = std::any_of(
        kOptimizerKinds.begin(), kOptimizerKinds.end(),
        [this](StateKind kind) { return draft_.placement_given[static_cast<size_t>(kind)]; });
    config_.pin_state = draft_.pin_state;
    if (draft_.pin_state == PinChoice::always && config_.host_memory == 0) {
      fail(
          "\"strata.pin_state\" is \"always\" without a budget to fill: give "
          "\"strata.host_memory\"");
    }
    const bool budget_is_for_it = draft_.offload_optimizer == OffloadDevice::nvme && !placed &&
                                  config_.host_memory > 0 && config_.slots == 1;
    if (draft_.pin_state == PinChoice::automatic && !budget_is_for_it) {
      config_.pin_state = PinChoice::never;
    }
  }

  // Steps are recovered from the slot that still counts, and go on in two beside one that is
  // copied.
  void resolve_slots() {
    const bool needs_two = config_.recovery == RecoveryChoice::step || config_.snapshot_slots > 0;
    config_.slots = static_cast<int>(draft_.slots.value_or(needs_two ? 2 : 1));
    if (config_.snapshot_slots > 0 && config_.slots == 1) {
      fail(
          "\"strata.snapshot_slots\" is for a slot that is copied while steps go on in two others, "
          "and \"strata.slots\" is 1: set it to 2, or leave it out");
    }
    if (needs_two && config_.slots == 1) {
      fail(
          "\"strata.recovery\" is \"step\", for which a step is written while the one before "
          "still counts: set \"strata.slots\" to 2, or leave it out");
    }
  }

  void resolve_speculation() const {
    if (config_.speculate != SpeculateChoice::always) return;
    if (config_.slots == 1 || !config_.overlap) {
      fail(
          "\"strata.speculate\" is \"always\", which takes a second slot to write to while the "
          "first still counts: set \"strata.slots\" to 2 and leave \"strata.overlap\" on");
    }
    if (config_.master_codec == Codec::split16) {
      fail(
          "\"strata.speculate\" is \"always\", and parameters that an update overwrote cannot be "
          "restored from \"split16\" masters, of which they are a half: set "
          "\"strata.master_codec\" "
          "to \"fp32\" or \"strata.speculate\" to \"never\"");
    }
  }

  void resolve_io() {
    const auto& threads = draft_.io_threads;
    const auto& parallelism = draft_.intra_op_parallelism;
    if (threads && parallelism && *threads != *parallelism) {
      fail(
          fmt::format("\"aio.thread_count\" is {} but \"aio.intra_op_parallelism\" is {}, and both "
                      "mean the same: keep one of them",
                      *threads, *parallelism));
    }
    if (parallelism) config_.io_threads = static_cast<int>(*parallelism);
    if (threads) config_.io_threads = static_cast<int>(*threads);
  }

  ConfigDraft& draft_;
  Config& config_;
  const std::string& source_;
  const int world_size_;
};

}  // namespace

std::array<Codec, kOptimizerKindCount> codecs_of(const Config& config) {
  const OptimizerMoments moments = moments_of(config.optimizer.kind);
  return {config.master_codec, moments.exp_avg ? config.moment_codec : Codec::none,
          moments.exp_avg_sq ? config.moment_codec : Codec::none};
}

Config Config::from_json(std::string_view text, const std::string& source, int world_size) {
  ConfigDraft draft;
  const Json root = parse_json_object(text, source);
  draft.config.text = root.dump();
  draft.config.no_effect_keys = options::take_all(root, config_table(draft), source);
  Resolver(draft, source, world_size).resolve();
  return draft.config;
}

Config Config::from_file(const std::string& path, int world_size) {
  return from_json(read_text_file(path), path, world_size);
}

}  // namespace strata
