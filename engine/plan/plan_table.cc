#include <fmt/format.h>

#include <string>

#include "strata/plan.h"

namespace strata {
namespace {

double mib(uint64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

}  // namespace

std::optional<Tier> PlanSummary::over_budget() const {
  for (Tier tier : kTiers) {
    const auto i = static_cast<size_t>(tier);
    if (needed_bytes[i] > budget_bytes[i]) return tier;
  }
  return std::nullopt;
}

std::string optimizer_state_text(const PlanSummary& plan) {
  std::string out;
  double bytes = 0;
  for (size_t i = 0; i < kOptimizerKindCount; ++i) {
    if (plan.codecs[i] == Codec::none) continue;
    out += fmt::format("{} {}, ", name(kOptimizerKinds[i]), name(plan.codecs[i]));
    bytes += static_cast<double>(stored_bytes(plan.codecs[i], kGrainNumel)) / kGrainNumel;
  }
  return out + fmt::format("{:.2f} bytes a parameter", bytes);
}

std::string to_string(const PlanSummary& plan) {
  const std::string whose =
      plan.ranks == 1 ? "" : fmt::format(" on rank {} of {}", plan.rank, plan.ranks);
  std::string out = fmt::format("plan: {} parameters, {:.1f} MiB of training state{}\n",
                                plan.parameters, mib(plan.training_state_bytes), whose);
  for (Tier tier : kTiers) {
    const auto i = static_cast<size_t>(tier);
    if (plan.needed_bytes[i] == 0) continue;
    out += fmt::format("  {:<7} {:>9.1f} MiB of {:.1f}\n", name(tier), mib(plan.needed_bytes[i]),
                       mib(plan.budget_bytes[i]));
    for (const Reservation& r : plan.reservations) {
      if (r.tier == tier) out += fmt::format("    {:<28} {:>9.2f} MiB\n", r.name, mib(r.bytes));
    }
  }
  out += fmt::format("  process overhead {:.1f} MiB\n", mib(plan.process_overhead_bytes));
  out += fmt::format("  optimizer state: {};", optimizer_state_text(plan));
  for (Tier tier : kTiers) {
    const uint64_t bytes = plan.optimizer_state_bytes[static_cast<size_t>(tier)];
    if (bytes > 0) out += fmt::format(" {:.1f} MiB on {},", mib(bytes), name(tier));
  }
  out += fmt::format(" {} staging buffers\n", plan.staging_buffers);
  out += "  a step moves";
  for (size_t link = 0; link < kLinkCount; ++link) {
    out += fmt::format("{} {} {:.1f} MiB", link == 0 ? "" : ",", name(static_cast<Activity>(link)),
                       mib(plan.step_traffic[link]));
  }
  out +=
      fmt::format("\n  {} sub-groups, {} gather buffers, {} units recomputed, recovery: {}\n",
                  plan.sub_groups, plan.gather_window_units, plan.recomputed_units, plan.recovery);
  return out;
}

}  // namespace strata
