#include "engine/plan/sub_group_order.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace strata::engine {
namespace {

constexpr size_t kNever = std::numeric_limits<size_t>::max();

// Sub-groups by when `combine` of their units' times comes, and by index among equals. `times` is
// by unit.
template <typename Combine>
std::vector<int32_t> sorted_by(const OrderInput& input, const std::vector<size_t>& times,
                               size_t first, const Combine& combine) {
  std::vector<size_t> keys(input.groups.size(), first);
  const auto& units = input.layout.units();
  for (size_t u = 0; u < units.size(); ++u) {
    const auto [begin, end] = sub_groups_of(input.groups, units[u].trainable.shard());
    for (int32_t s = begin; s < end; ++s) {
      size_t& key = keys[static_cast<size_t>(s)];
      key = combine(key, times[u]);
    }
  }
  std::vector<int32_t> order(input.groups.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return keys[static_cast<size_t>(a)] < keys[static_cast<size_t>(b)];
  });
  return order;
}

}  // namespace

SubGroupRange sub_groups_of(std::span<const offload::SubGroup> groups, GrainRange grains) {
  if (grains.empty()) return {};
  const auto first = std::partition_point(groups.begin(), groups.end(), [&](const auto& group) {
    return group.grains.end <= grains.begin;
  });
  const auto last = std::partition_point(
      first, groups.end(), [&](const auto& group) { return group.grains.begin < grains.end; });
  return {static_cast<int32_t>(first - groups.begin()),
          static_cast<int32_t>(last - groups.begin())};
}

std::vector<int32_t> order_of_use(const OrderInput& input) {
  const auto& units = input.layout.units();
  std::vector<size_t> first_use(units.size(), kNever);
  const auto use = [&](int unit, size_t time) {
    size_t& first = first_use[static_cast<size_t>(unit)];
    first = std::min(first, time);
  };
  const auto& actions = input.program.actions;
  for (size_t time = 0; time < actions.size(); ++time) {
    const Action& action = actions[time];
    if (action.op == Action::Op::gather) use(action.unit, time);
    if (action.op != Action::Op::forward) continue;
    for (int need : units[static_cast<size_t>(action.unit)].needs) use(need, time);
  }
  return sorted_by(input, first_use, kNever, [](size_t a, size_t b) { return std::min(a, b); });
}

std::vector<int32_t> order_of_completion(const OrderInput& input) {
  std::vector<size_t> complete(input.layout.units().size(), 0);
  const auto& actions = input.program.actions;
  for (size_t time = 0; time < actions.size(); ++time) {
    if (actions[time].op != Action::Op::reduce) continue;
    complete[static_cast<size_t>(actions[time].unit)] = time;
  }
  return sorted_by(input, complete, 0, [](size_t a, size_t b) { return std::max(a, b); });
}

}  // namespace strata::engine
