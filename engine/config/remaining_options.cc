// Keys of DeepSpeed for things that Strata does not have, or does without being asked.
#include "engine/config/option_table.h"

namespace strata {
namespace {

using namespace options;  // NOLINT: the table's own vocabulary

Group communication_group() {
  const std::string always = "Gradients travel in the model's dtype and are summed in fp32.";
  return {"Communication",
          {no_effect("communication_data_type", Type::string, always),
           no_effect("seq_parallel_comm_data_type", Type::string, always),
           no_effect("seq_parallel_communication_data_type", Type::string, always),
           no_effect("prescale_gradients", Type::boolean, always),
           no_effect("gradient_predivide_factor", Type::number, always),
           no_effect("sparse_gradients", Type::boolean, always),
           no_effect("disable_allgather", Type::boolean, always),
           no_effect("comms_logger", Type::object,
                     "The closing table and `--trace` show what was sent.")}};
}

Group logging_group() {
  const std::string metrics = "`strata train --metrics` writes one line of JSON a step.";
  const std::string trace = "`strata train --trace` records where the time went.";
  return {
      "Logging and profiling",
      {no_effect("steps_per_print", Type::integer, metrics),
       no_effect("wall_clock_breakdown", Type::boolean, trace),
       no_effect("memory_breakdown", Type::boolean, metrics),
       no_effect("dump_state", Type::boolean, "The start-up lines show the plan."),
       no_effect("timers", Type::object, trace), no_effect("flops_profiler", Type::object, trace),
       no_effect("tensorboard", Type::object, metrics), no_effect("wandb", Type::object, metrics),
       no_effect("comet", Type::object, metrics), no_effect("csv_monitor", Type::object, metrics)}};
}

Group activation_group(ConfigDraft& draft) {
  const std::string recompute = "`strata.recompute` decides.";
  const std::string path = "activation_checkpointing";
  return {"Activation checkpointing",
          {section(path, "Strata recomputes from unit boundaries; see `strata.recompute`."),
           honoured(path + ".cpu_checkpointing", boolean(draft.cpu_checkpointing),
                    "Activations between units wait for backward in host memory.",
                    "`strata.placement.activation` can divide them."),
           no_effect(path + ".partition_activations", Type::boolean, recompute),
           no_effect(path + ".contiguous_memory_optimization", Type::boolean, recompute),
           no_effect(path + ".number_checkpoints", Type::integer, recompute),
           no_effect(path + ".synchronize_checkpoint_boundary", Type::boolean, recompute),
           no_effect(path + ".profile", Type::boolean, recompute)}};
}

Group checkpoint_group() {
  const std::string own = "It is about DeepSpeed's checkpoints.";
  return {"Checkpoints",
          {section("checkpoint", "DeepSpeed's checkpoints."),
           no_effect("checkpoint.tag_validation", Type::string, own),
           refused("checkpoint.load_universal", Type::boolean, only(false),
                   "DeepSpeed's universal checkpoints are not there; write false or remove it"),
           no_effect("checkpoint.use_node_local_storage", Type::boolean, own),
           no_effect("checkpoint.parallel_write", Type::object, own),
           no_effect("checkpoint.writer", Type::object, own),
           refused("nebula", Type::object, unless_enabled(),
                   "Azure's Nebula is not there; remove it")}};
}

Group parallelism_group() {
  return {
      "Other kinds of parallelism",
      {refused("pipeline", Type::object, nothing(),
               "pipeline parallelism is not there; ZeRO shards the layers instead, so remove it"),
       refused("tensor_parallel", Type::object, nothing(),
               "tensor parallelism is not there; ZeRO shards the layers instead, so remove it"),
       refused("sequence_parallel_size", Type::integer, only(1),
               "sequence parallelism is not there yet; write 1 or remove it"),
       refused("moe", Type::object, unless_enabled(),
               "mixture of experts is not there yet; remove it"),
       refused("use_data_before_expert_parallelism", Type::boolean, only(false),
               "mixture of experts is not there yet; write false or remove it"),
       refused("hybrid_engine", Type::object, unless_enabled(),
               "the hybrid engine for RLHF is not there; remove it"),
       refused("elasticity", Type::object, unless_enabled(),
               "elastic training is not there yet; give the batch sizes and remove it"),
       refused("sparse_attention", Type::object, nothing(),
               "attention is dense and causal here; remove it")}};
}

Group data_group() {
  return {"Data, compression, tuning",
          {no_effect("dataloader_drop_last", Type::boolean, "Rows are drawn without end."),
           no_effect("vocabulary_size", Type::integer, "The model's description has it."),
           no_effect("zero_allow_untested_optimizer", Type::boolean,
                     "There is one optimizer, and it is tested."),
           no_effect("zero_force_ds_cpu_optimizer", Type::boolean,
                     "There is one implementation of the update."),
           no_effect("graph_harvesting", Type::boolean, "It changes speed on GPUs only."),
           no_effect("compile", Type::object, "There is no Python to compile."),
           refused("data_efficiency", Type::object, unless_enabled(),
                   "data routing and sampling are not there yet; remove it"),
           refused("curriculum_learning", Type::object, unless_enabled(),
                   "curriculum learning is not there yet; remove it"),
           refused("progressive_layer_drop", Type::object, unless_enabled(),
                   "layer dropping is not there; remove it"),
           refused("eigenvalue", Type::object, unless_enabled(),
                   "it serves quantized training, which is not there; remove it"),
           refused("quantize_training", Type::object, unless_enabled(),
                   "quantized training is not there; remove it"),
           refused("weight_quantization", Type::object, unless_enabled(),
                   "weight quantization is not there; remove it"),
           refused("compression_training", Type::object, unless_enabled(),
                   "compression during training is not there; remove it"),
           refused("autotuning", Type::object, unless_enabled(),
                   "autotuning is not there; choose the batch sizes and remove it")}};
}

}  // namespace

options::Table remaining_groups(ConfigDraft& draft) {
  return {activation_group(draft), communication_group(), logging_group(),
          checkpoint_group(),      parallelism_group(),   data_group()};
}

options::Table config_table(ConfigDraft& draft) {
  options::Table table = training_groups(draft);
  for (options::Group& group : tier_groups(draft)) table.push_back(std::move(group));
  for (options::Group& group : remaining_groups(draft)) table.push_back(std::move(group));
  return table;
}

}  // namespace strata
