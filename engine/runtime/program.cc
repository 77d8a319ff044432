#include "engine/runtime/program.h"

#include <algorithm>
#include <limits>

namespace strata::engine {
namespace {

constexpr int kNever = std::numeric_limits<int>::max();

// Forwards and backwards in order, without data movement.
std::vector<Action> compute_order(const ProgramInput& input) {
  const int units = static_cast<int>(input.layout.units().size());
  std::vector<Action> order;
  for (int m = 0; m < input.micro_batches; ++m) {
    for (int u = 0; u < units; ++u) order.push_back({Action::Op::forward, u, m});
    if (!input.training) continue;
    for (int u = units - 1; u >= 0; --u) {
      Action action{Action::Op::backward, u, m};
      action.recompute = u != units - 1 && !input.keeps_saved[static_cast<size_t>(u)];
      order.push_back(action);
    }
  }
  return order;
}

// Assigns gathered units to window slots along the order of compute.
class Window {
 public:
  Window(const ProgramInput& input, const std::vector<Action>& order)
      : input_(input), order_(order) {
    const size_t ahead = input.overlap ? 1 : 0;
    for (size_t site = 0; site < order.size(); ++site) {
      std::vector<int> live;
      for (size_t s = site; s <= std::min(site + ahead, order.size() - 1); ++s) {
        for (int unit : gathered_needs(s)) add(live, unit);
      }
      slots_.resize(std::max(slots_.size(), live.size()), kEmpty);
    }
    slot_numel_.resize(slots_.size(), 0);
  }

  // Elements that each slot must hold, known when the program is complete.
  const std::vector<int64_t>& slot_numel() const { return slot_numel_; }

  // Appends the gathers that must have been issued before the compute at `site`: its own, and
  // with overlap those of the next one.
  void bring(size_t site, std::vector<Action>& actions) {
    std::vector<int> pinned = gathered_needs(site);
    for (int unit : gathered_needs(site)) bring_unit(unit, site, pinned, actions);
    if (!input_.overlap || site + 1 >= order_.size()) return;
    for (int unit : gathered_needs(site + 1)) add(pinned, unit);
    for (int unit : gathered_needs(site + 1)) bring_unit(unit, site, pinned, actions);
  }

 private:
  static constexpr int kEmpty = -1;

  static void add(std::vector<int>& units, int unit) {
    if (std::find(units.begin(), units.end(), unit) == units.end()) units.push_back(unit);
  }

  std::vector<int> gathered_needs(size_t site) const {
    std::vector<int> needs;
    const Unit& unit = input_.layout.units()[static_cast<size_t>(order_[site].unit)];
    for (int need : unit.needs) {
      if (input_.gathered[static_cast<size_t>(need)]) needs.push_back(need);
    }
    return needs;
  }

  int next_use(int unit, size_t after) const {
    for (size_t site = after; site < order_.size(); ++site) {
      const auto needs = gathered_needs(site);
      if (std::find(needs.begin(), needs.end(), unit) != needs.end()) {
        return static_cast<int>(site);
      }
    }
    return kNever;
  }

  void bring_unit(int unit, size_t site, const std::vector<int>& pinned,
                  std::vector<Action>& actions) {
    if (std::find(slots_.begin(), slots_.end(), unit) != slots_.end()) return;
    auto victim = std::find(slots_.begin(), slots_.end(), kEmpty);
    int farthest = -1;
    if (victim == slots_.end()) {
      for (auto slot = slots_.begin(); slot != slots_.end(); ++slot) {
        if (std::find(pinned.begin(), pinned.end(), *slot) != pinned.end()) continue;
        const int use = next_use(*slot, site);
        if (use > farthest) {
          farthest = use;
          victim = slot;
        }
      }
    }
    *victim = unit;
    Action action{Action::Op::gather, unit, order_[site].micro_batch};
    action.slot = static_cast<int>(victim - slots_.begin());
    int64_t& numel = slot_numel_[static_cast<size_t>(action.slot)];
    numel = std::max(numel, input_.layout.units()[static_cast<size_t>(unit)].numel());
    actions.push_back(action);
  }

  const ProgramInput& input_;
  const std::vector<Action>& order_;
  std::vector<int> slots_;  // unit in each slot
  std::vector<int64_t> slot_numel_;
};

// Gradient slots: a unit holds one from the first backward that touches its parameters until its
// gradients are handed to landing. With overlap a slot that was given back rests for one turn, so
// that landing hides behind the next backward. Every micro-batch repeats the same assignment.
class GradientSlots {
 public:
  explicit GradientSlots(const ProgramInput& input)
      : units_(input.layout.units()),
        resting_(input.overlap ? 1 : 0),
        slot_of_(units_.size(), kNone),
        users_(units_.size(), 0) {
    for (const Unit& unit : units_) {
      for (int owner : trainable_owners(unit)) ++users_[static_cast<size_t>(owner)];
    }
    for (auto unit = units_.rbegin(); unit != units_.rend(); ++unit) assign(*unit);
  }

  const std::vector<int>& slot_of() const { return slot_of_; }
  const std::vector<int64_t>& slot_numel() const { return slot_numel_; }

  // Owners whose gradients are complete once this unit's backward has run: no earlier unit uses
  // them.
  std::vector<int> complete_after(int unit_index) const {
    std::vector<int> complete;
    for (int owner : trainable_owners(units_[static_cast<size_t>(unit_index)])) {
      if (first_user(owner) == unit_index) complete.push_back(owner);
    }
    return complete;
  }

 private:
  static constexpr int kNone = -1;

  static std::vector<int> trainable_owners(const Unit& unit) {
    std::vector<int> owners;
    for (const ParameterRef& ref : unit.parameters) {
      if (ref.trainable && std::find(owners.begin(), owners.end(), ref.unit) == owners.end()) {
        owners.push_back(ref.unit);
      }
    }
    return owners;
  }

  // Backward runs from the last unit to the first, so the first user is the last to add.
  int first_user(int owner) const {
    for (size_t u = 0; u < units_.size(); ++u) {
      const auto owners = trainable_owners(units_[u]);
      if (std::find(owners.begin(), owners.end(), owner) != owners.end()) {
        return static_cast<int>(u);
      }
    }
    return kNone;
  }

  void assign(const Unit& unit) {
    for (int owner : trainable_owners(unit)) {
      int& slot = slot_of_[static_cast<size_t>(owner)];
      if (slot == kNone) slot = take();
      int64_t& numel = slot_numel_[static_cast<size_t>(slot)];
      numel = std::max(numel, units_[static_cast<size_t>(owner)].trainable.numel);
    }
    for (int owner : trainable_owners(unit)) {
      if (--users_[static_cast<size_t>(owner)] == 0) {
        free_.push_back(slot_of_[static_cast<size_t>(owner)]);
      }
    }
  }

  int take() {
    if (free_.size() > resting_) {
      const int slot = free_.front();
      free_.erase(free_.begin());
      return slot;
    }
    slot_numel_.push_back(0);
    return static_cast<int>(slot_numel_.size()) - 1;
  }

  const std::vector<Unit>& units_;
  const size_t resting_;
  std::vector<int> slot_of_;
  std::vector<int> users_;  // units yet to add to this owner's gradients
  std::vector<int> free_;   // longest free first
  std::vector<int64_t> slot_numel_;
};

}  // namespace

Program plain_program(const ProgramInput& input) {
  const std::vector<Action> order = compute_order(input);
  Program program;
  Window window(input, order);
  const GradientSlots gradients(input);
  for (size_t site = 0; site < order.size(); ++site) {
    window.bring(site, program.actions);
    const Action& action = order[site];
    program.actions.push_back(action);
    if (action.op != Action::Op::backward) continue;
    for (int owner : gradients.complete_after(action.unit)) {
      Action reduce{Action::Op::reduce, owner, action.micro_batch};
      reduce.slot = gradients.slot_of()[static_cast<size_t>(owner)];
      program.actions.push_back(reduce);
    }
  }
  program.window_numel = window.slot_numel();
  program.grad_slot = gradients.slot_of();
  if (input.training) program.grad_slot_numel = gradients.slot_numel();
  return program;
}

}  // namespace strata::engine
