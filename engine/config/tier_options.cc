// Keys that decide where state lives and how it moves: ZeRO, offloading, I/O, "strata".
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "engine/config/option_table.h"
#include "io/stripe_pattern.h"
#include "strata/grain.h"

namespace strata {
namespace {

using namespace options;  // NOLINT: the table's own vocabulary

constexpr const char* kOwnCollectives =
    "Gradients are always reduce-scattered, parameters gathered unit by unit.";
constexpr const char* kOwnSchedule = "Units are gathered and released on a schedule of their own.";
constexpr const char* kOwnBuffers = "`strata.staging_buffers` says how many there are.";

void add_zero_keys_without_effect(std::vector<Option>& rows) {
  for (const char* key :
       {"allgather_partitions", "reduce_scatter", "contiguous_gradients", "round_robin_gradients",
        "use_multi_rank_bucket_allreduce", "stage3_use_all_reduce_for_fetch_params",
        "stage3_allgather_sequential"}) {
    rows.push_back(
        no_effect(std::string("zero_optimization.") + key, Type::boolean, kOwnCollectives));
  }
  rows.push_back(
      no_effect("zero_optimization.overlap_comm", Type::boolean,
                "Collectives always overlap with compute, unless `strata.overlap` is off."));
  rows.push_back(no_effect("zero_optimization.allgather_bucket_size", Type::integer,
                           "A unit is gathered whole."));
  for (const char* key : {"stage3_max_reuse_distance", "stage3_model_persistence_threshold",
                          "stage3_module_granularity_threshold", "max_reuse_distance",
                          "model_persistence_threshold", "module_granularity_threshold"}) {
    rows.push_back(no_effect(std::string("zero_optimization.") + key, Type::number, kOwnSchedule));
  }
  for (const char* key :
       {"stage3_gather_16bit_weights_on_model_save", "gather_16bit_weights_on_model_save",
        "stage3_gather_fp16_weights_on_model_save", "load_from_fp32_weights", "elastic_checkpoint",
        "pipeline_loading_checkpoint"}) {
    rows.push_back(no_effect(std::string("zero_optimization.") + key, Type::boolean,
                             "It is about DeepSpeed's checkpoints."));
  }
  for (const char* key :
       {"grad_hooks", "ignore_unused_parameters", "legacy_stage1", "memory_efficient_linear",
        "override_module_apply", "log_trace_cache_warnings", "cpu_offload_use_pin_memory"}) {
    rows.push_back(no_effect(std::string("zero_optimization.") + key, Type::boolean,
                             "It is about DeepSpeed's inner workings."));
  }
}

Value reduce_bucket(int64_t& out) {
  Value value = integer(out, {.min = 1});
  value.takes_auto = true;
  value.take = [&out, take = value.take](const Json& json) -> std::string {
    if (json != "auto") return take(json);
    out = Config::kAutoReduceBucket;
    return "";
  };
  return value;
}

// A number of parameters; as Hugging Face's formulas for "auto" it may be a fraction, which is cut.
Value parameters(std::optional<int64_t>& out, int64_t fallback, bool takes_auto) {
  Value value = {"a number of parameters of at least 0", std::to_string(fallback), {}};
  value.takes_auto = takes_auto;
  value.take = [&out, expects = value.expects](const Json& json) -> std::string {
    if (json == "auto") {
      out = Config::kAutoNumel;
      return "";
    }
    const auto number = as_number(json, {.min = 0, .max = 1e18});
    if (!number) return must_be(expects, json);
    out = static_cast<int64_t>(*number);
    return "";
  };
  return value;
}

// Stage 3's bounds on gathered parameters, by both names that DeepSpeed has for each.
void add_gather_bounds(std::vector<Option>& rows, ConfigDraft& draft) {
  struct Bound {
    const char* key;
    std::array<std::optional<int64_t>, 2>& out;
    int64_t fallback;
    bool takes_auto;
    std::string meaning;
    std::string note;
  };
  const Config& config = draft.config;
  const Bound bounds[] = {
      {"max_live_parameters", draft.max_live, config.max_live_numel, false,
       "Stage 3: parameters gathered at a time, at most; a unit under way and the one after it "
       "always are.",
       ""},
      {"prefetch_bucket_size", draft.prefetch, config.prefetch_numel, true,
       "Stage 3: parameters gathered ahead of their use, at most; the next unit's always are.",
       "Units ahead are two at most. \"auto\" is 0.9 times the widest layer's channels, squared, "
       "as the Trainer has it."},
      {"param_persistence_threshold", draft.persistence, ConfigDraft::kPersistence, true,
       "Stage 3: units all of whose parameters have at most so many elements stay gathered.",
       "DeepSpeed keeps such parameters of larger units too; a unit is gathered whole here. "
       "\"auto\" is 10 times the widest layer's channels, as the Trainer has it."}};
  for (const Bound& bound : bounds) {
    const std::string path = "zero_optimization.";
    rows.push_back(honoured(path + "stage3_" + bound.key,
                            parameters(bound.out[0], bound.fallback, bound.takes_auto),
                            bound.meaning, bound.note));
    rows.push_back(honoured(path + bound.key,
                            parameters(bound.out[1], bound.fallback, bound.takes_auto),
                            "Its short name."));
  }
}

Group zero_group(ConfigDraft& draft) {
  Group group = {
      "ZeRO",
      {section("zero_optimization", "Sharding of the training state."),
       honoured("zero_optimization.stage", integer(draft.config.stage, {0, 3}),
                "What is sharded: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too.",
                "3 where DeepSpeed's default is 0. All stages give the same bits."),
       honoured("zero_optimization.sub_group_size", integer(draft.sub_group_size, {.min = 1}),
                "Elements that the optimizer pipeline moves at a time, rounded down to a multiple "
                "of 4096, at least 4096.",
                "DeepSpeed's default is 1e9 and cuts between parameters only; a sub-group here may "
                "split a parameter, so small ones waste nothing."),
       honoured("zero_optimization.reduce_bucket_size",
                reduce_bucket(draft.config.reduce_bucket_numel),
                "Elements of a unit's gradient that are reduced over the ranks at a time; it "
                "bounds the room for what peers send.",
                "By whole grains of 4096 elements a rank, at least one. \"auto\" is the square of "
                "the widest layer's channels, as the Trainer has it."),
       refused("zero_optimization.zero_hpz_partition_size", Type::integer, only(1),
               "secondary partitions are not there yet; write 1 or remove it"),
       refused("zero_optimization.mics_shard_size", Type::integer, only(-1),
               "MiCS is not there yet; write -1 or remove it"),
       refused("zero_optimization.zeropp_loco_param", Type::object, nothing(),
               "ZeRO++ is not there yet; remove it"),
       refused("zero_optimization.zenflow", Type::object, nothing(),
               "updates from stale gradients are not there; remove it")}};
  auto& rows = group.options;
  for (const char* key : {"zero_quantized_weights", "zero_quantized_nontrainable_weights",
                          "zero_quantized_gradients", "mics_hierarchical_params_gather"}) {
    rows.push_back(refused(std::string("zero_optimization.") + key, Type::boolean, only(false),
                           "it is not there yet; write false or remove it"));
  }
  rows.push_back(refused("zero_optimization.cpu_offload", Type::boolean, only(false),
                         "it is deprecated; use \"offload_optimizer\": {\"device\": \"cpu\"}"));
  rows.push_back(refused("zero_optimization.cpu_offload_param", Type::boolean, only(false),
                         "it is deprecated; use \"offload_param\": {\"device\": \"cpu\"}"));
  add_gather_bounds(rows, draft);
  add_zero_keys_without_effect(rows);
  return group;
}

// A directory, or as our extension a list of them.
Value nvme_path(std::vector<std::string>& out) {
  const std::string expects = "a directory's path or a list of them";
  return {expects, "", [=, &out](const Json& json) -> std::string {
            const Json list = json.is_array() ? json : Json::array({json});
            std::vector<std::string> paths;
            for (const Json& path : list) {
              if (!path.is_string() || path.get_ref<const std::string&>().empty()) {
                return must_be(expects, json);
              }
              paths.push_back(path.get<std::string>());
            }
            if (paths.empty()) return must_be(expects, json);
            for (const std::string& path : paths) {
              if (std::count(paths.begin(), paths.end(), path) > 1) {
                return fmt::format("lists \"{}\" twice: name each directory once", path);
              }
            }
            out = std::move(paths);
            return "";
          }};
}

// "auto", or a weight a directory.
Value nvme_weights(std::vector<uint32_t>& out) {
  const std::string expects =
      fmt::format("\"auto\" or a list of integers from 1 to {}", io::StripePattern::kMaxWeight);
  Value value = {expects, "\"auto\"", [=, &out](const Json& json) -> std::string {
                   if (json == "auto") return "";
                   if (!json.is_array() || json.empty()) return must_be(expects, json);
                   for (const Json& weight : json) {
                     const auto taken = as_integer(weight, {1, io::StripePattern::kMaxWeight});
                     if (!taken) return must_be(expects, json);
                     out.push_back(static_cast<uint32_t>(*taken));
                   }
                   return "";
                 }};
  value.takes_auto = true;
  return value;
}

Group offload_group(ConfigDraft& draft) {
  const std::string optimizer = "zero_optimization.offload_optimizer";
  const std::string param = "zero_optimization.offload_param";
  const std::string pinned = "State in host memory is always pinned.";
  const std::string overlapped = "Reads and writes always overlap, unless `strata.overlap` is off.";
  return {
      "Offloading",
      {section(optimizer, "Where master weights and moments live."),
       honoured(optimizer + ".device",
                choice(draft.offload_optimizer, {{"none", OffloadDevice::none},
                                                 {"cpu", OffloadDevice::cpu},
                                                 {"nvme", OffloadDevice::nvme}}),
                "Tier of the optimizer state: none is the device's memory, cpu is host memory.",
                "`strata.placement` can split each kind of state."),
       honoured(optimizer + ".nvme_path", nvme_path(draft.nvme_paths),
                "Directory of the state files; needed when something lives on nvme, here or in "
                "offload_param.",
                "A list of directories, on disks of their own, is our extension: state is dealt "
                "to all of them (`strata.nvme_weights`)."),
       honoured(optimizer + ".ratio", number(draft.ratio, {.min = 0, .max = 1}),
                "With device cpu: the part that lives and is updated in host memory; the rest "
                "stays on the device.",
                "By grains of 4096 elements, so any ratio means what it says."),
       no_effect(optimizer + ".pin_memory", Type::boolean, pinned),
       no_effect(optimizer + ".buffer_count", Type::integer, kOwnBuffers),
       no_effect(optimizer + ".pipeline_read", Type::boolean, overlapped),
       no_effect(optimizer + ".pipeline_write", Type::boolean, overlapped),
       no_effect(optimizer + ".fast_init", Type::boolean, "Files are written once, at start."),
       section(param, "Where 16-bit parameters live between uses."),
       honoured(param + ".device",
                choice(draft.offload_param, {{"none", OffloadDevice::none},
                                             {"cpu", OffloadDevice::cpu},
                                             {"nvme", OffloadDevice::nvme}}),
                "Tier of the parameters with stage 3: none is the device's memory, cpu is host "
                "memory.",
                "Units that stay gathered (`stage3_param_persistence_threshold`) are on the device "
                "wherever the others are."),
       honoured(param + ".nvme_path", nvme_path(draft.param_nvme_paths),
                "As offload_optimizer's: all files are in one list of directories.",
                "DeepSpeed can have two directories; here both keys name the same."),
       no_effect(param + ".pin_memory", Type::boolean, pinned),
       no_effect(param + ".buffer_count", Type::integer, kOwnBuffers),
       no_effect(param + ".buffer_size", Type::number, kOwnBuffers),
       no_effect(param + ".max_in_cpu", Type::number,
                 "`strata.placement.param` divides the parameters between host and nvme.")}};
}

Value block_bytes(uint32_t& out) {
  const std::string expects = "a multiple of 4096 bytes from 4096 to \"1GiB\"";
  return {expects, std::to_string(out), [=, &out](const Json& json) -> std::string {
            const auto value = as_bytes(json);
            if (!value || *value < 4096 || *value > (1u << 30) || *value % 4096 != 0) {
              return must_be(expects, json);
            }
            out = static_cast<uint32_t>(*value);
            return "";
          }};
}

Value worker_count(std::optional<int64_t>& out, int fallback) {
  return integer({1, 256}, std::to_string(fallback),
                 [&out](uint64_t v) { out = static_cast<int64_t>(v); });
}

Group aio_group(ConfigDraft& draft) {
  Config& out = draft.config;
  return {
      "Asynchronous I/O",
      {section("aio", "How files are read and written."),
       honoured("aio.block_size", block_bytes(out.io_block_bytes), "Bytes of one request."),
       honoured("aio.queue_depth", integer(out.io_queue_depth, {1, 4096}), "Requests in flight.",
                "DeepSpeed's default is 8."),
       honoured("aio.thread_count", worker_count(draft.io_threads, out.io_threads),
                "Workers of the thread engine; io_uring has none.", "DeepSpeed's default is 1."),
       honoured("aio.intra_op_parallelism",
                worker_count(draft.intra_op_parallelism, out.io_threads),
                "DeepSpeed's other name of `aio.thread_count`."),
       no_effect("aio.single_submit", Type::boolean, "Requests are submitted in batches."),
       no_effect("aio.overlap_events", Type::boolean, "Completions are reaped as they come."),
       refused("aio.use_gds", Type::boolean, only(false),
               "GPUDirect Storage is not there yet; write false or remove it")}};
}

void add_placement(std::vector<Option>& rows, ConfigDraft& draft) {
  rows.push_back(section("strata.placement",
                         "Parts of each kind of state by tier; they override the offload keys. "
                         "Master weights and moments have equal device parts."));
  const auto add = [&](StateKind kind, const std::string& meaning, bool has_device) {
    const auto i = static_cast<size_t>(kind);
    const std::string path = fmt::format("strata.placement.{}", name(kind));
    TierFractions& out = draft.placement_fractions[i];
    rows.push_back(section(path, meaning + " Parts add up to 1; those not given are 0.",
                           [&draft, i] { draft.placement_given[i] = true; }));
    const NumberRange part = {.min = 0, .max = 1};
    if (has_device) {
      rows.push_back(
          honoured(path + ".device", number(out.device, part), "Part in device memory."));
    }
    rows.push_back(honoured(path + ".host", number(out.host, part), "Part in host memory."));
    rows.push_back(honoured(path + ".nvme", number(out.nvme, part), "Part in files."));
  };
  add(StateKind::param, "Parameters, with stage 3.", true);
  for (StateKind kind : kOptimizerKinds) add(kind, "Optimizer state.", true);
  add(StateKind::grad,
      "Gradients of what is updated on the host; all of it in host memory unless "
      "told otherwise.",
      false);
  add(StateKind::activation,
      "Activations between units that wait for backward; all on the device unless told otherwise. "
      "By units: the first ones, which wait longest, are on nvme, the next ones in host memory.",
      true);
}

Value staging_buffers(int& out) {
  Value value = integer(out, {1, 1024});
  value.expects = "\"auto\" or " + value.expects;
  value.fallback = "\"auto\"";
  value.takes_auto = true;
  value.take = [&out, expects = value.expects, take = value.take](const Json& json) -> std::string {
    if (json == "auto") {
      out = Config::kAutoStagingBuffers;
      return "";
    }
    return take(json).empty() ? "" : must_be(expects, json);
  };
  return value;
}

Group strata_group(ConfigDraft& draft) {
  Config& out = draft.config;
  const IntegerRange threads = {0, 1024};
  Group group = {
      "Strata's own",
      {section("strata",
               "What DeepSpeed has no key for. Except for `seed`, `moment_codec`, `accumulate`, "
               "`reduction`, `tiles` and `parameter_groups`, none of it changes the training "
               "state."),
       honoured("strata.device",
                choice(out.device, {{"auto", DeviceChoice::automatic},
                                    {"host", DeviceChoice::host},
                                    {"cuda", DeviceChoice::cuda}}),
                "What computes. auto is the host so far, also where there is a GPU: cuda, with "
                "which each "
                "rank takes a GPU of its machine, is built and has not run on one yet."),
       honoured("strata.device_memory", bytes(out.device_memory),
                "Budget of device memory; 0: as much as the plan needs and the device has."),
       honoured("strata.host_memory", bytes(out.host_memory),
                "Budget of pinned host memory; 0: as much as the plan needs and the machine has."),
       honoured("strata.compute_threads", integer(out.compute_threads, threads),
                "Threads for the model's arithmetic on the host; 0: all cores."),
       honoured("strata.optimizer_threads", integer(out.optimizer_threads, threads),
                "Threads for the optimizer's update on the host; 0: all cores."),
       honoured("strata.cpu_binding",
                choice(out.cpu_binding,
                       {{"auto", CpuBindingChoice::automatic}, {"none", CpuBindingChoice::none}}),
                "auto: the threads of the update on the host divide this rank's CPUs among them "
                "and each keeps to its part, except where OMP_PROC_BIND, OMP_PLACES or "
                "GOMP_CPU_AFFINITY is set (or OMP_DYNAMIC or OMP_THREAD_LIMIT) or CPUs are fewer "
                "than threads or ranks. Nothing else is bound. On a machine of several NUMA nodes "
                "host memory is dealt to those of the CPUs in use, unless numactl says otherwise."),
       honoured("strata.staging_buffers", staging_buffers(out.staging_buffers),
                "Sub-groups under way between nvme and the update; auto: 8, or fewer where there "
                "are not as many or the host budget holds no more."),
       honoured("strata.pin_state",
                choice(draft.pin_state, {{"auto", PinChoice::automatic},
                                         {"never", PinChoice::never},
                                         {"always", PinChoice::always}}),
                "Of the optimizer state placed on nvme, keep in pinned host memory what "
                "`strata.host_memory` holds beside everything else, to the grain: it then moves no "
                "more. auto: where offload_optimizer.device is nvme, `strata.host_memory` is "
                "given, `strata.placement` is not, and there is one slot. always: refused where "
                "nothing is placed on nvme."),
       honoured("strata.master_codec",
                choice(out.master_codec, {{"fp32", Codec::fp32}, {"split16", Codec::split16}}),
                "How master weights are kept between steps: split16 keeps the 16 bits that bf16 "
                "parameters leave, exact and half the bytes."),
       honoured("strata.moment_codec",
                choice(out.moment_codec,
                       {{"fp32", Codec::fp32}, {"bf16", Codec::bf16}, {"int8", Codec::int8}}),
                "How the optimizer's moments are kept: bf16 and int8 (8-bit floats with a scale "
                "for each 256) are rounded stochastically, by step and element, and change the "
                "training state."),
       honoured("strata.accumulate",
                choice(out.accumulate, {{"reduced", AccumulateChoice::reduced},
                                        {"local", AccumulateChoice::local}}),
                "Gradients of several micro-batches on several ranks: reduced adds them up over "
                "the ranks, then over micro-batches, and holds shards; local adds up each rank's "
                "own first, in fp32 on the device, and reduces once a step. Each has bits of its "
                "own."),
       honoured("strata.reduction",
                choice(out.reduction,
                       {{"exact", ReductionChoice::exact}, {"fast", ReductionChoice::fast}}),
                "Who adds up gradients over ranks. exact: every rank gives its own and each adds "
                "up its shard in fp32, rank 0 first, so that a sum's bits depend on nothing but "
                "its addends. fast, for ranks on GPUs alone: NCCL's reduce-scatter, in the dtype "
                "of the gradients (fp32 where `accumulate` is local), rounded after each addition, "
                "in an order that NCCL chooses, then widened to fp32; a unit at a time, whatever "
                "the bucket's size. Placement and overlap still change no bit within a world; "
                "another number of ranks, network or version of NCCL may, and between ZeRO's "
                "stages nothing is promised. In fp16 a sum may overflow where the addends did "
                "not, and the step is skipped."),
       honoured("strata.order",
                choice(out.order, {{"auto", OrderChoice::automatic},
                                   {"plain", OrderChoice::plain},
                                   {"vertical", OrderChoice::vertical}}),
                "How several micro-batches go through the units: plain takes each forward and "
                "back, then the next; vertical takes all of them through a unit before the next "
                "unit, so that parameters travel once a step, and holds the activations between "
                "units of all of them. auto compares what both move with nominal bandwidths."),
       honoured(
           "strata.tiles", integer(out.tiles, {.min = 1, .max = Config::kMostTiles}),
           "Memory-centric tiling: into how many parts, gathered one after the other, the "
           "model's wide layers are divided: of embedding and head the vocabulary, of each "
           "block's attention its heads and of its MLP the inner channels. For layers too "
           "wide for the device's budget, and logits too: no more than a tile's need be "
           "there at a time. The gradient of the token table that embedding and head share "
           "waits on the device for both of them, in all its tiles. In vertical order a layer's "
           "inputs and outputs of all micro-batches are on the device while its tiles pass. "
           "Sums are rounded once a tile, so each number of tiles has bits of its own."),
       honoured("strata.overlap", boolean(out.overlap),
                "false: one thing at a time, for measuring and debugging."),
       honoured("strata.overlap_update", boolean(out.overlap_update),
                "With `overlap`: what is left of a step runs under the next forward pass, which "
                "waits for each unit's own parameters. With two slots it becomes durable there."),
       honoured("strata.speculate",
                choice(out.speculate, {{"auto", SpeculateChoice::automatic},
                                       {"never", SpeculateChoice::never},
                                       {"always", SpeculateChoice::always}}),
                "With two slots: sub-groups on nvme are updated inside backward, as if the norm "
                "will not ask for clipping, and again where it does. auto: while at most 4 of the "
                "last 16 steps were clipped or skipped. always: refused where no sub-group's "
                "whole state is on nvme. Not with split16 masters, from which overwritten "
                "parameters could not be restored."),
       honoured("strata.recompute",
                choice(out.recompute,
                       {{"auto", RecomputeChoice::automatic}, {"always", RecomputeChoice::always}}),
                "Activations inside a unit: auto keeps as many units' as the device budget holds, "
                "always computes them a second time in backward."),
       honoured("strata.io_engine",
                choice(out.io_engine, {{"auto", IoChoice::automatic},
                                       {"io_uring", IoChoice::io_uring},
                                       {"threads", IoChoice::threads}}),
                "How files are read and written; auto falls back to threads where io_uring is "
                "forbidden."),
       honoured("strata.io_direct",
                choice(out.io_direct, {{"auto", DirectChoice::automatic},
                                       {"required", DirectChoice::required},
                                       {"off", DirectChoice::off}}),
                "O_DIRECT; auto falls back to buffered files, with a warning, where the file "
                "system refuses."),
       honoured("strata.nvme_weights", nvme_weights(draft.config.nvme_weights),
                "How much of the state goes to each of several directories of `nvme_path`: as [3, "
                "1], three times as much to the first as to the second. auto goes by their "
                "bandwidth, measured for half a second each at start."),
       honoured("strata.comm_timeout", number(out.comm_timeout_s, {.min = 0, .above_min = true}),
                "Seconds that a rank waits for one that is alive but does not come, before the "
                "run ends."),
       honoured("strata.watchdog", number(out.watchdog_s, {.min = 0}),
                "Seconds that a transfer to or from nvme, or a queue's work that does not compute, "
                "may stand still before the run ends with an error that names it; 0: for ever. "
                "A flush, and a file system that does not answer the caller, have four times as "
                "long; what computes on the host is never ended, of a GPU it cannot be seen. Below "
                "`strata.comm_timeout`, so that the rank that stands still says why before the "
                "others give it up."),
       honoured(
           "strata.slots",
           integer({1, 2}, "", [&draft](uint64_t v) { draft.slots = static_cast<int64_t>(v); }),
           "Places on disk for each sub-group; with 2 the step before stays intact until the "
           "next is durable. 2 with `strata.recovery` \"step\" or `strata.snapshot_slots`, "
           "otherwise "
           "1."),
       honoured("strata.snapshot_slots", integer(out.snapshot_slots, {0, 1}),
                "Another slot, for runs that recover steps: a checkpoint is copied from it while "
                "steps go on in the other two. With 0 the second step behind the one that is saved "
                "waits for the copy."),
       honoured("strata.checkpoint_share",
                number(out.checkpoint_share, {.min = 0, .max = 1, .above_min = true}),
                "Part of the time in which a checkpoint that is copied while steps go on reads and "
                "writes, so that it does not take the disk from them; 1: as fast as it can."),
       honoured("strata.recovery",
                choice(out.recovery, {{"auto", RecoveryChoice::automatic},
                                      {"step", RecoveryChoice::step},
                                      {"checkpoint", RecoveryChoice::checkpoint}}),
                "What a killed run that has a run directory goes on from: step, the step it was "
                "in, with the same bits, for which all of the optimizer's state is on nvme in two "
                "slots, and masters are fp32; checkpoint, its last checkpoint. auto: step where "
                "that is so."),
       honoured("strata.checksums", boolean(out.checksums),
                "Optimizer state read from nvme is checked against what was written, before "
                "anything is computed of it."),
       honoured("strata.seed", integer(out.seed, {0, std::numeric_limits<uint64_t>::max()}),
                "Seed of the initial parameters and of the order of the data.")}};
  add_placement(group.options, draft);
  return group;
}

}  // namespace

options::Table tier_groups(ConfigDraft& draft) {
  return {zero_group(draft), offload_group(draft), aio_group(draft), strata_group(draft)};
}

}  // namespace strata
