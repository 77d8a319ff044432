#include "engine/runtime/updater.h"

#include <algorithm>
#include <utility>

namespace strata::engine {

using offload::Purpose;

Updater::Updater(const Plan& plan, const Config& config, const Parts& parts,
                 offload::TierManager& tiers)
    : plan_(plan),
      choice_(config.overlap && plan.commits() ? config.speculate : SpeculateChoice::never),
      runs_on_(config.overlap && config.overlap_update),
      optimizer_(plan, config, parts.device_ops, parts.host_ops),
      pipeline_(
          parts.pipeline, plan.staging, tiers,
          [this](const offload::UpdateSpans& spans, Queue& queue) {
            optimizer_.update(spans, queue);
          },
          config.overlap),
      units_(plan.state.sub_groups.size(), 0),
      awaited_(plan.layout.units().size(), true),
      to_land_(units_.size(), 0),
      speculated_(units_.size(), false) {
  begun_.reserve(units_.size());
  for (const Unit& unit : plan.layout.units()) {
    const SubGroupRange range = sub_groups_of(plan.state.sub_groups, unit.trainable.shard());
    for (int32_t s = range.begin; s < range.end; ++s) ++units_[static_cast<size_t>(s)];
    sub_groups_.push_back(range);
  }
  for (const int32_t s : plan.order_of_completion) {
    if (may_speculate(s)) speculative_order_.push_back(s);
  }
}

bool Updater::may_speculate(int32_t sub_group) const {
  return choice_ != SpeculateChoice::never &&
         can_speculate(plan_.state, plan_.state.sub_groups[static_cast<size_t>(sub_group)]);
}

void Updater::begin(const Step& step) {
  step_ = step;
  speculation_ = {};
  promised_before_ = pipeline_.promised();
  speculates_ = choice_ == SpeculateChoice::always ||
                (choice_ == SpeculateChoice::automatic && policy_.worthwhile());
  speculated_.assign(speculated_.size(), false);
  to_land_ = units_;
  prepared_ = false;
  pipeline_.read_ahead(speculates_ ? speculative_order_ : plan_.order_of_use);
}

bool Updater::has_parameters(int unit) const {
  if (awaited_[static_cast<size_t>(unit)]) return true;
  const auto [begin, end] = sub_groups_[static_cast<size_t>(unit)];
  for (int32_t s = begin; s < end; ++s) {
    if (!pipeline_.has_parameters(s)) return false;
  }
  return true;
}

bool Updater::await_parameters(int unit, Queue& queue) {
  if (awaited_[static_cast<size_t>(unit)]) return false;
  const bool waits = !has_parameters(unit);
  const auto [begin, end] = sub_groups_[static_cast<size_t>(unit)];
  for (int32_t s = begin; s < end; ++s) {
    queue.wait(pipeline_.parameters(s),
               {StateKind::param, unit, "parameters wait for their update"});
  }
  awaited_[static_cast<size_t>(unit)] = true;
  return waits;
}

void Updater::landed(int unit, const Event& event) {
  if (!speculates_) return;
  if (!std::exchange(prepared_, true)) {
    optimizer_.prepare(Purpose::speculation, step_.number, step_.rates, step_.grad_scale);
  }
  const auto [begin, end] = sub_groups_[static_cast<size_t>(unit)];
  for (int32_t s = begin; s < end; ++s) {
    if (--to_land_[static_cast<size_t>(s)] > 0 || !may_speculate(s)) continue;
    pipeline_.submit(s, Purpose::speculation, event);
    speculated_[static_cast<size_t>(s)] = true;
  }
}

void Updater::update(double clip_factor) {
  const bool holds = clip_factor == 1.0;
  policy_.note(!holds);
  optimizer_.prepare(Purpose::update, step_.number, step_.rates, step_.grad_scale * clip_factor);
  for (const int32_t s : plan_.order_of_use) {
    if (speculated_[static_cast<size_t>(s)]) {
      ++speculation_.sub_groups;
      if (holds) continue;
      if (!pipeline_.recall(s)) {
        ++speculation_.redone;
        speculation_.redone_bytes =
            speculation_.redone_bytes +
            offload::update_traffic(plan_.state, plan_.state.sub_groups[static_cast<size_t>(s)]);
      }
    }
    pipeline_.submit(s);
  }
  awaited_.assign(awaited_.size(), false);
  if (!runs_on_) pipeline_.drain();
}

void Updater::skip() {
  policy_.note(true);
  begun_.clear();
  for (size_t s = 0; s < speculated_.size(); ++s) {
    if (!speculated_[s]) continue;
    ++speculation_.sub_groups;
    if (!pipeline_.recall(static_cast<int32_t>(s))) begun_.push_back(static_cast<int32_t>(s));
  }
  if (begun_.empty()) return;
  // What was read for others gives its buffers back: nobody else would before the next step.
  pipeline_.settle();
  for (const int32_t s : begun_) pipeline_.submit(s, Purpose::restoration);
  awaited_.assign(awaited_.size(), false);
  speculation_.redone = static_cast<int64_t>(begun_.size());
  speculation_.redone_bytes = pipeline_.promised() - promised_before_;
}

}  // namespace strata::engine
