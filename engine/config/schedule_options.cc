// Keys of "scheduler": DeepSpeed's learning rate schedules.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "engine/config/option_table.h"

namespace strata {
namespace {

using namespace options;  // NOLINT: the table's own vocabulary

constexpr std::string_view kParams = "scheduler.params.";

constexpr std::array<std::pair<ScheduleKind, std::string_view>, 4> kSchedules = {
    {{ScheduleKind::warmup, "WarmupLR"},
     {ScheduleKind::warmup_decay, "WarmupDecayLR"},
     {ScheduleKind::warmup_cosine, "WarmupCosineLR"},
     {ScheduleKind::one_cycle, "OneCycle"}}};

std::string_view name(ScheduleKind kind) {
  const auto it = std::find_if(kSchedules.begin(), kSchedules.end(),
                               [&](const auto& schedule) { return schedule.first == kind; });
  return it->second;
}

// Which schedules have a key. All keys of OneCycle, and no others', begin as its do.
std::vector<ScheduleKind> owners_of(std::string_view key) {
  using enum ScheduleKind;
  if (key.starts_with("cycle_") || key.starts_with("decay_")) return {one_cycle};
  if (key == "warmup_min_lr" || key == "warmup_max_lr") return {warmup, warmup_decay};
  if (key == "total_num_steps") return {warmup_decay, warmup_cosine};
  if (key == "warmup_min_ratio" || key == "cos_min_ratio") return {warmup_cosine};
  return {warmup, warmup_decay, warmup_cosine};
}

std::string names(const std::vector<ScheduleKind>& kinds) {
  std::vector<std::string_view> words;
  for (const ScheduleKind kind : kinds) words.push_back(name(kind));
  return fmt::format("{}", fmt::join(words, ", "));
}

Value scheduler_type(std::optional<ScheduleKind>& out) {
  const std::string expects = "\"WarmupLR\", \"WarmupDecayLR\", \"WarmupCosineLR\" or \"OneCycle\"";
  return {expects, "", [&out, expects](const Json& json) -> std::string {
            if (!json.is_string()) return must_be(expects, json);
            for (const auto& [kind, word] : kSchedules) {
              if (json != word) continue;
              out = kind;
              return "";
            }
            return fmt::format(
                "is {}, which is not there: use {}, or remove \"scheduler\" for a constant "
                "learning rate",
                json.dump(), expects);
          }};
}

// The rows of "scheduler.params", which note that they were given.
class Rows {
 public:
  explicit Rows(ConfigDraft& draft) : draft_(draft) {}

  void add(std::string_view key, Value value, const std::string& meaning,
           const std::string& note = "", const std::string& trainer_default = "") {
    ConfigDraft& draft = draft_;
    rows.push_back(honoured(
        fmt::format("{}{}", kParams, key),
        and_then(std::move(value), [&draft, key] { draft.schedule_keys.emplace_back(key); }),
        fmt::format("{}: {}", names(owners_of(key)), meaning), note, trainer_default));
  }

  std::vector<Option> rows;

 private:
  ConfigDraft& draft_;
};

constexpr IntegerRange kAnySteps = {.min = 0, .max = 1'000'000'000'000};
constexpr IntegerRange kSomeSteps = {.min = 1, .max = 1'000'000'000'000};

// Without a default to show: it has to be given, or another key stands for it.
Value without_fallback(Value value) {
  value.fallback = "";
  return value;
}

void add_warmup_keys(Rows& rows, ConfigDraft& draft) {
  WarmupConfig& out = draft.config.schedule.warmup;
  rows.add("warmup_min_lr", with_auto(number(out.min_lr, {.min = 0}), [&out] { out.min_lr = 0; }),
           "learning rate of the first step.", "\"auto\" is 0, as the Trainer has it.");
  rows.add("warmup_max_lr",
           without_fallback(
               with_auto(number(out.max_lr, {.min = 0}), [&draft] { draft.auto_max_lr = true; })),
           "learning rate after the warm-up; it replaces `optimizer.params.lr`.",
           "Not given, that of WarmupLR is `optimizer.params.lr` (0.001 in older DeepSpeed) and "
           "that of WarmupDecayLR 0.001. \"auto\" is `optimizer.params.lr`, as the Trainer has "
           "it.");
  rows.add("warmup_num_steps", integer(out.num_steps, kAnySteps),
           "steps from the first learning rate to the last.",
           "As in DeepSpeed, 1 means 2; so does 0, which newer DeepSpeed refuses.", "0");
  rows.add("warmup_type", choice(out.logarithmic, {{"log", true}, {"linear", false}}),
           "how it rises: log(step) / log(steps), or step / steps.");
  Value total = integer(kSomeSteps, "",
                        [&out](uint64_t v) { out.total_num_steps = static_cast<int64_t>(v); });
  total.expects = "the run's number of steps, " + total.expects;
  rows.add("total_num_steps", std::move(total),
           "steps over which the rate rises and decays; it has to be given.",
           "Then the rate stays: WarmupDecayLR's at 0. Where the warm-up takes all of them, it "
           "falls to that at once.");
  rows.add("warmup_min_ratio", number(out.min_ratio, {.min = 0}),
           "where the warm-up starts, as a part of `optimizer.params.lr`.",
           "As in DeepSpeed, the first step's rate is 0 all the same.");
  rows.add("cos_min_ratio", number(out.cos_min_ratio, {.min = 0}),
           "where the cosine ends, as a part of `optimizer.params.lr`.");
}

void add_cycle_keys(Rows& rows, ConfigDraft& draft) {
  OneCycleConfig& out = draft.config.schedule.one_cycle;
  const NumberRange momentum = {.min = 0, .max = 1, .below_max = true};
  rows.add("cycle_min_lr", without_fallback(number(out.min_lr, {.min = 0})),
           "learning rate at both ends of the cycle; it has to be given.");
  rows.add("cycle_max_lr", without_fallback(number(out.max_lr, {.min = 0})),
           "learning rate in between; it has to be given.");
  rows.add("cycle_first_step_size", integer(out.first_steps, kSomeSteps),
           "steps from cycle_min_lr to cycle_max_lr.");
  rows.add("cycle_second_step_size", without_fallback(integer(out.second_steps, kAnySteps)),
           "steps back.", "Not given, as many as the first.");
  rows.add("cycle_first_stair_count", integer(out.first_stairs, kAnySteps),
           "even stairs in which rate and momentum move on the way there; 0: smoothly.");
  rows.add("cycle_second_stair_count", without_fallback(integer(out.second_stairs, kAnySteps)),
           "stairs on the way back.", "Not given, as many as on the way there.");
  rows.add("decay_step_size", integer(out.decay_steps, kAnySteps),
           "steps that the decay after the cycle counts as one; 0: no decay.");
  rows.add("decay_lr_rate", number(out.lr_decay_rate, {.min = 0}),
           "after the cycle the learning rate is cycle_min_lr / (1 + this * steps / "
           "decay_step_size).");
  rows.add("cycle_momentum", boolean(out.cycles_beta1),
           "beta1 moves against the learning rate; the first step has cycle_min_mom, and beta2 is "
           "0.99 throughout, in place of `optimizer.params.betas`.",
           "Off for Adagrad and SGD, which have no betas.");
  rows.add("cycle_min_mom", number(out.min_beta1, momentum),
           "beta1 where the learning rate is highest.");
  rows.add("cycle_max_mom", number(out.max_beta1, momentum),
           "beta1 where the learning rate is lowest.");
  rows.add("decay_mom_rate", number(out.beta1_decay_rate, {.min = 0}),
           "after the cycle beta1 is cycle_max_mom * (1 + this * steps / decay_step_size): it "
           "grows, and the run ends where it reaches 1.");
}

bool given(const ConfigDraft& draft, std::string_view key) {
  const auto& keys = draft.schedule_keys;
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

// A key of another schedule, or one that this schedule needs.
std::string check_keys(const ConfigDraft& draft) {
  const ScheduleKind kind = *draft.schedule_type;
  for (const std::string& key : draft.schedule_keys) {
    const auto owners = owners_of(key);
    if (std::find(owners.begin(), owners.end(), kind) != owners.end()) continue;
    return fmt::format("\"{}{}\" means nothing to {}: remove it (it belongs to {})", kParams, key,
                       name(kind), names(owners));
  }
  for (const char* key : {"total_num_steps", "cycle_min_lr", "cycle_max_lr"}) {
    const auto owners = owners_of(key);
    const bool owned = std::find(owners.begin(), owners.end(), kind) != owners.end();
    if (!owned || given(draft, key)) continue;
    return fmt::format("\"{}{}\" is missing, and {} needs it: write it as a number", kParams, key,
                       name(kind));
  }
  return "";
}

std::string resolve_max_lr(ConfigDraft& draft) {
  if (draft.auto_max_lr && !draft.lr_given) {
    return "\"scheduler.params.warmup_max_lr\" is \"auto\", which stands for "
           "\"optimizer.params.lr\": give that as a number";
  }
  const bool by_default =
      *draft.schedule_type == ScheduleKind::warmup && !given(draft, "warmup_max_lr");
  if (draft.auto_max_lr || by_default) {
    draft.config.schedule.warmup.max_lr = draft.config.optimizer.lr;
  }
  return "";
}

std::string resolve_cycle(ConfigDraft& draft) {
  OneCycleConfig& cycle = draft.config.schedule.one_cycle;
  if (!given(draft, "cycle_second_step_size")) cycle.second_steps = cycle.first_steps;
  if (!given(draft, "cycle_second_stair_count")) cycle.second_stairs = cycle.first_stairs;
  const OptimizerKind kind = draft.config.optimizer.kind;
  if (!has_betas(kind)) {
    if (cycle.cycles_beta1 && given(draft, "cycle_momentum")) {
      return fmt::format(
          "\"scheduler.params.cycle_momentum\" is true, and {} has no betas to move: write false",
          name(kind));
    }
    cycle.cycles_beta1 = false;
  }
  auto& no_effect_keys = draft.config.no_effect_keys;
  if (cycle.cycles_beta1) {
    if (draft.betas_given) no_effect_keys.emplace_back("optimizer.params.betas");
    return "";
  }
  for (const char* key : {"cycle_min_mom", "cycle_max_mom", "decay_mom_rate"}) {
    if (given(draft, key)) no_effect_keys.push_back(fmt::format("{}{}", kParams, key));
  }
  return "";
}

}  // namespace

Group schedule_group(ConfigDraft& draft) {
  Rows rows(draft);
  add_warmup_keys(rows, draft);
  add_cycle_keys(rows, draft);
  Group group = {
      "Learning rate schedule",
      {section("scheduler", "The schedule; a constant learning rate when not given.",
               [&draft] { draft.scheduler_given = true; }),
       honoured("scheduler.type", scheduler_type(draft.schedule_type), "The schedule's name.",
                "As in DeepSpeed, a schedule moves after the optimizer: its first "
                "iteration is the second step's."),
       section("scheduler.params", "Its settings; each schedule takes its own alone.")}};
  for (Option& row : rows.rows) group.options.push_back(std::move(row));
  group.options.push_back(refused("scheduler.params.last_batch_iteration", Type::integer, only(-1),
                                  "the schedule's position is the engine's step; remove it"));
  for (const char* key : {"min_lr", "step_size", "step_rate", "staircase"}) {
    group.options.push_back(refused(fmt::format("{}lr_range_test_{}", kParams, key), Type::anything,
                                    nothing(),
                                    "it belongs to LRRangeTest, which is not there; remove it"));
  }
  return group;
}

std::string resolve_schedule(ConfigDraft& draft) {
  if (!draft.scheduler_given) return "";
  if (!draft.schedule_type) return "\"scheduler.type\" is missing: write \"WarmupLR\"";
  ScheduleConfig& schedule = draft.config.schedule;
  schedule.kind = *draft.schedule_type;
  schedule.warmup.num_steps = std::max<int64_t>(2, schedule.warmup.num_steps);
  std::string complaint = check_keys(draft);
  if (complaint.empty()) complaint = resolve_max_lr(draft);
  if (complaint.empty() && schedule.kind == ScheduleKind::one_cycle) {
    complaint = resolve_cycle(draft);
  }
  return complaint;
}

}  // namespace strata
