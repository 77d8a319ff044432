// Keys that decide what is computed: batch, precision, optimizer, parameter groups.
#include <fmt/format.h>

#include <cctype>

#include "engine/config/option_table.h"

namespace strata {
namespace {

using namespace options;  // NOLINT: the table's own vocabulary

constexpr IntegerRange kCount = {1, 1'000'000'000};

// A batch size: absent, "auto" and null all mean that the other two decide.
Value batch_size(std::optional<int64_t>& out) {
  Value value = integer(kCount, "", [&out](uint64_t v) { out = static_cast<int64_t>(v); });
  value.takes_auto = true;
  value.take = [take = value.take](const Json& json) -> std::string {
    return json == "auto" ? "" : take(json);
  };
  return value;
}

Group batch_group(ConfigDraft& draft) {
  const std::string any_two = "Any two of the three give the third; \"auto\" counts as not given.";
  return {"Batch",
          {honoured("train_batch_size", batch_size(draft.train_batch),
                    "Rows in a step, over all ranks and micro-batches.", any_two),
           honoured("train_micro_batch_size_per_gpu", batch_size(draft.micro_batch),
                    "Rows in one rank's micro-batch.", any_two),
           honoured("gradient_accumulation_steps", batch_size(draft.accumulation_steps),
                    "Micro-batches a rank adds up in a step.",
                    any_two + " 1 when only one of the others is given.")}};
}

Group precision_group(ConfigDraft& draft) {
  LossScaleConfig& scale = draft.config.loss_scale;
  return {"Precision",
          {section("bf16", "bfloat16 parameters, activations and local gradients."),
           honoured("bf16.enabled", boolean(draft.bf16),
                    "Train in bf16 with fp32 master weights; without bf16 and fp16 everything "
                    "is fp32.",
                    "", "false"),
           no_effect("bf16.immediate_grad_update", Type::boolean,
                     "Gradients always land in their accumulator as they complete."),
           section("bfloat16", "DeepSpeed's old name of `bf16`."),
           honoured("bfloat16.enabled", boolean(draft.bfloat16), "As `bf16.enabled`.", "", "false"),
           section("fp16", "IEEE half precision, with a loss scale."),
           honoured("fp16.enabled", boolean(draft.fp16), "Train in fp16 with fp32 master weights.",
                    "Not together with bf16.", "false"),
           no_effect("fp16.auto_cast", Type::boolean,
                     "A model's inputs are tokens, which are not cast."),
           honoured("fp16.loss_scale", number(scale.constant, {.min = 0, .max = 1e38}),
                    "A constant scale of the loss; 0: it follows overflows.",
                    "A step whose gradients overflow is skipped either way."),
           honoured("fp16.initial_scale_power", integer(scale.initial_power, {.max = 126}),
                    "The scale starts at two to this power."),
           honoured("fp16.loss_scale_window", integer(scale.window, kCount),
                    "Steps without overflow before the scale doubles; as in DeepSpeed, one more "
                    "after the start and after an overflow.",
                    "A step is unscaled by the scale it was computed with; where that doubles, "
                    "DeepSpeed's ZeRO takes the new one."),
           honoured("fp16.hysteresis", integer(scale.hysteresis, kCount),
                    "Overflows before the scale halves; it is full again when the scale doubles.",
                    "In DeepSpeed 0 means that the scale never falls."),
           honoured("fp16.consecutive_hysteresis", boolean(scale.consecutive_hysteresis),
                    "The hysteresis is full again after every step without overflow."),
           honoured("fp16.min_loss_scale", integer(scale.min_scale, kCount),
                    "Smallest scale; an overflow there ends the run."),
           refused("fp16.fp16_master_weights_and_grads", Type::boolean, only(false),
                   "master weights are fp32; write false or remove it"),
           refused("amp", Type::object, unless_enabled(),
                   "Apex's mixed precision is not there; use \"bf16\": {\"enabled\": true}"),
           refused("torch_autocast", Type::object, unless_enabled(),
                   "PyTorch's autocast is not there; use \"bf16\": {\"enabled\": true}"),
           section("data_types", "Types that DeepSpeed sets apart from the parameters'."),
           refused("data_types.grad_accum_dtype", Type::string, only("fp32"),
                   "gradients are always accumulated in fp32; write \"fp32\"")}};
}

// `type` by DeepSpeed's spelling, upper and lower case alike.
Value optimizer_type(std::optional<OptimizerKind>& out) {
  const std::string expects = "\"Adam\", \"AdamW\", \"Adagrad\", \"Lion\" or \"SGD\"";
  return {expects, "\"AdamW\"", [=, &out](const Json& json) -> std::string {
            if (!json.is_string()) return must_be(expects, json);
            std::string lower = json.get<std::string>();
            for (char& c : lower)
              c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
            for (OptimizerKind kind : kOptimizers) {
              if (lower != name(kind)) continue;
              out = kind;
              return "";
            }
            return fmt::format("is {}, which is not there yet: use {}", json.dump(), expects);
          }};
}

Value betas(OptimizerConfig& out) {
  const std::string expects = "a list of two numbers of at least 0 and below 1";
  return {expects, Json::array({out.beta1, out.beta2}).dump(),
          [=, &out](const Json& json) -> std::string {
            if (!json.is_array() || json.size() != 2) return must_be(expects, json);
            for (const Json& beta : json) {
              if (!as_number(beta, {.min = 0}) || beta.get<double>() >= 1) {
                return must_be(expects, json);
              }
            }
            out.beta1 = json[0].get<double>();
            out.beta2 = json[1].get<double>();
            return "";
          }};
}

void add_keys_of_other_optimizers(std::vector<Option>& options) {
  for (const char* key :
       {"freeze_step", "cuda_aware", "comm_backend_name", "var_freeze_step", "var_update_scaler",
        "local_step_scaler", "local_step_clipper", "coeff_beta", "factor_max", "factor_min",
        "factor_threshold", "max_coeff", "min_coeff"}) {
    options.push_back(refused(std::string("optimizer.params.") + key, Type::anything, nothing(),
                              "it belongs to an optimizer that is not there yet; remove it"));
  }
}

Group optimizer_group(ConfigDraft& draft) {
  OptimizerConfig& out = draft.config.optimizer;
  Group group = {
      "Optimizer",
      {section("optimizer", "The optimizer; AdamW with its defaults when not given.",
               [&draft] { draft.optimizer_given = true; }),
       honoured("optimizer.type", optimizer_type(draft.optimizer_type),
                "The optimizer's name, in upper or lower case.",
                "As in DeepSpeed, \"Adam\" means AdamW unless `adam_w_mode` is false."),
       section("optimizer.params", "Its settings."),
       honoured("optimizer.params.lr",
                and_then(number(out.lr, {.min = 0}), [&draft] { draft.lr_given = true; }),
                "Learning rate.", "A scheduler takes its place, as in DeepSpeed.", "5e-5"),
       honoured("optimizer.params.betas",
                and_then(betas(out), [&draft] { draft.betas_given = true; }),
                "Decay rates of Adam's two moments; of Lion's step and its moment.",
                "Not for Adagrad and SGD.", "[0.9, 0.999]"),
       honoured("optimizer.params.eps",
                and_then(number(out.eps, {.min = 0, .above_min = true}),
                         [&draft] { draft.eps_given = true; }),
                "Added to the root of the second moment.", "Not for Lion and SGD.", "1e-8"),
       honoured("optimizer.params.momentum",
                and_then(number(out.momentum, {.min = 0, .max = 1}),
                         [&draft] { draft.momentum_given = true; }),
                "SGD's.", "For SGD alone."),
       honoured("optimizer.params.weight_decay", number(out.weight_decay, {.min = 0}),
                "Weight decay, of tensors of rank 2 or more: decoupled in AdamW and Lion, L2 "
                "regularisation in Adam, Adagrad and SGD.",
                "DeepSpeed decays every parameter of the group it is given; "
                "`strata.parameter_groups` says otherwise for some.",
                "0.0"),
       honoured("optimizer.params.adam_w_mode", boolean(draft.adam_w_mode),
                "With \"Adam\", false asks for L2 regularisation."),
       refused("optimizer.params.nesterov", Type::boolean, only(false),
               "Nesterov's momentum is not there; write false or remove it"),
       refused("optimizer.params.dampening", Type::number, only(0),
               "SGD is not dampened; write 0 or remove it"),
       refused("optimizer.params.lr_decay", Type::number, only(0),
               "Adagrad's own decay of the learning rate is not there; use \"scheduler\""),
       no_effect("optimizer.params.torch_adam", Type::boolean,
                 "There is one implementation of the update."),
       refused("optimizer.params.bias_correction", Type::boolean, only(true),
               "the update always corrects the moments' bias; write true or remove it"),
       refused("optimizer.params.amsgrad", Type::boolean, only(false),
               "AMSGrad is not there yet; write false or remove it"),
       refused("optimizer.params.fp32_optimizer_states", Type::boolean, only(true),
               "`strata.moment_codec` says how moments are kept; write true or remove it"),
       no_effect("optimizer.params.set_grad_none", Type::boolean,
                 "Gradients have buffers of their own for the whole run."),
       refused("optimizer.params.max_grad_norm", Type::number, nothing(),
               "as in DeepSpeed; use \"gradient_clipping\" in its place"),
       no_effect("optimizer.legacy_fusion", Type::boolean,
                 "There is one implementation of the update."),
       honoured("gradient_clipping", number(draft.config.gradient_clipping, {.min = 0}),
                "Largest global norm of the gradient; 0 switches clipping off.", "", "1.0")}};
  add_keys_of_other_optimizers(group.options);
  return group;
}

Value patterns(std::function<void(std::vector<std::string>)> set) {
  const std::string expects = "a list of patterns like \"*.bias\"";
  return {expects, "", [=](const Json& json) -> std::string {
            if (!json.is_array() || json.empty()) return must_be(expects, json);
            std::vector<std::string> taken;
            for (const Json& pattern : json) {
              if (!pattern.is_string() || pattern == "") return must_be(expects, json);
              taken.push_back(pattern.get<std::string>());
            }
            set(std::move(taken));
            return "";
          }};
}

Group parameter_group_group(ConfigDraft& draft) {
  auto& groups = draft.config.parameter_groups;
  const std::string path = "strata.parameter_groups";
  return {
      "Parameter groups",
      {sections(path,
                "Parameters with settings of their own: each belongs to the first group that has "
                "a pattern for its name.",
                [&groups] { groups.emplace_back(); }),
       honoured(path + "[].match",
                patterns([&groups](auto taken) { groups.back().match = std::move(taken); }),
                "Shell patterns of parameters' names: * is any text, ? any character, [abc] one of "
                "these. A pattern that is like no parameter's name is an error."),
       honoured(path + "[].weight_decay",
                number({.min = 0}, "", [&groups](double v) { groups.back().weight_decay = v; }),
                "Their weight decay.",
                "Not given, it is what they have without a group: `optimizer.params.weight_decay` "
                "for tensors of rank 2 or more."),
       honoured(path + "[].lr_scale",
                number({.min = 0}, "1.0", [&groups](double v) { groups.back().lr_scale = v; }),
                "What the schedule's learning rate is multiplied with for them, in each step."),
       refused(
           path + "[].lr", Type::number, nothing(),
           "the schedule moves the learning rate of all; give \"lr_scale\", their part of it")}};
}

}  // namespace

options::Table training_groups(ConfigDraft& draft) {
  return {batch_group(draft), precision_group(draft), optimizer_group(draft), schedule_group(draft),
          parameter_group_group(draft)};
}

}  // namespace strata
