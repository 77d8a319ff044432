#include "engine/runtime/program.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <map>
#include <utility>

namespace strata::engine {
namespace {

constexpr int kNone = -1;
constexpr size_t kNever = std::numeric_limits<size_t>::max();

using Op = Action::Op;

bool contains(const std::vector<int>& values, int value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

void add(std::vector<int>& values, int value) {
  if (!contains(values, value)) values.push_back(value);
}

// Forwards and backwards in order, without data movement.
std::vector<Action> compute_order(const ProgramInput& input) {
  const int units = static_cast<int>(input.layout.units().size());
  const int last = units - 1;
  std::vector<Action> order;
  const auto forward = [&](int u, int m) { order.push_back({Op::forward, u, m}); };
  const auto backward = [&](int u, int m) {
    if (!input.training) return;
    Action action{Op::backward, u, m};
    action.recompute = u != last && !input.keeps_saved[static_cast<size_t>(u)];
    order.push_back(action);
  };
  const auto turn = [&](int m) {
    forward(last, m);
    backward(last, m);
  };
  if (input.order == UnitOrder::plain) {
    for (int m = 0; m < input.micro_batches; ++m) {
      for (int u = 0; u < last; ++u) forward(u, m);
      turn(m);
      for (int u = last; u-- > 0;) backward(u, m);
    }
    return order;
  }
  for (int u = 0; u < last; ++u) {
    for (int m = 0; m < input.micro_batches; ++m) forward(u, m);
  }
  for (int m = 0; m < input.micro_batches; ++m) turn(m);
  for (int u = last; u-- > 0;) {
    for (int m = 0; m < input.micro_batches; ++m) backward(u, m);
  }
  return order;
}

// Assigns gathered units to window slots along the order of compute, and completes whole units
// before their first use.
class Window {
 public:
  Window(const ProgramInput& input, const std::vector<Action>& order)
      : input_(input), uses_(input.layout.units().size()), completed_(uses_.size(), false) {
    for (const Action& action : order) {
      if (runs_.empty() || runs_.back().unit != action.unit) start_run(action.unit);
      run_of_.push_back(runs_.size() - 1);
    }
    gathers_ = std::find(input.access.begin(), input.access.end(), ParameterAccess::gathered) !=
               input.access.end();
    for (size_t run = 0; run < runs_.size(); ++run) {
      runs_[run].live = live_from(run);
      const auto& live = runs_[run].live;
      const auto windowed = static_cast<size_t>(
          std::count_if(live.begin(), live.end(), [this](int unit) { return is_gathered(unit); }));
      slots_.resize(std::max(slots_.size(), windowed), kNone);
    }
    slot_numel_.resize(slots_.size(), 0);
  }

  // Elements that each slot must hold, known when the program is complete.
  const std::vector<int64_t>& slot_numel() const { return slot_numel_; }

  // Appends the gathers that must have been issued before the compute at `site`: its own, and
  // those ahead of it.
  void bring(size_t site, int micro_batch, std::vector<Action>& actions) {
    const size_t run = run_of_[site];
    for (int unit : runs_[run].live) {
      if (is_gathered(unit) ? has_slot(unit) : completed_[static_cast<size_t>(unit)]) continue;
      Action action{Op::gather, unit, micro_batch};
      if (is_gathered(unit)) {
        action.slot = take_slot(unit, run);
      } else {
        completed_[static_cast<size_t>(unit)] = true;
      }
      actions.push_back(action);
    }
  }

 private:
  // Computes of one unit after each other.
  struct Run {
    int unit = 0;
    std::vector<int> needs;  // units that an action brings to it
    std::vector<int> live;   // these, then the next units ahead, as they are used
  };

  ParameterAccess access(int unit) const { return input_.access[static_cast<size_t>(unit)]; }
  bool is_gathered(int unit) const { return access(unit) == ParameterAccess::gathered; }
  int64_t numel(int unit) const { return input_.layout.units()[static_cast<size_t>(unit)].numel(); }

  void start_run(int unit) {
    Run run{unit, {}, {}};
    for (int need : input_.layout.units()[static_cast<size_t>(unit)].needs) {
      if (access(need) == ParameterAccess::in_place) continue;
      run.needs.push_back(need);
      uses_[static_cast<size_t>(need)].push_back(runs_.size());
    }
    runs_.push_back(std::move(run));
  }

  std::vector<int> live_from(size_t first) const {
    std::vector<int> live = runs_[first].needs;
    if (!input_.overlap) return live;
    int64_t live_numel = 0;
    for (int unit : live) live_numel += is_gathered(unit) ? numel(unit) : 0;
    int gathered = 0;
    int completed = 0;
    int64_t ahead_numel = 0;
    // Every unit comes once in so many.
    const size_t horizon = std::min(runs_.size(), first + 2 * uses_.size());
    for (size_t run = first + 1; run < horizon; ++run) {
      for (int unit : runs_[run].needs) {
        if (contains(live, unit)) continue;
        if (!is_gathered(unit)) {
          if (completed++ < input_.gather_ahead) live.push_back(unit);
          if (completed >= input_.gather_ahead && !gathers_) return live;
          continue;
        }
        ahead_numel += numel(unit);
        live_numel += numel(unit);
        const bool holds = gathered < input_.gather_ahead && ahead_numel <= input_.prefetch_numel &&
                           live_numel <= input_.max_live_numel;
        if (gathered++ > 0 && !holds) return live;
        live.push_back(unit);
      }
    }
    return live;
  }

  size_t next_use(int unit, size_t run) const {
    const auto& uses = uses_[static_cast<size_t>(unit)];
    const auto next = std::lower_bound(uses.begin(), uses.end(), run);
    return next == uses.end() ? kNever : *next;
  }

  bool has_slot(int unit) const { return contains(slots_, unit); }

  // An empty slot, or that of the unit which is used farthest in the future.
  int take_slot(int unit, size_t run) {
    auto victim = std::find(slots_.begin(), slots_.end(), kNone);
    if (victim == slots_.end()) {
      size_t farthest = 0;
      for (auto slot = slots_.begin(); slot != slots_.end(); ++slot) {
        if (contains(runs_[run].live, *slot)) continue;
        const size_t use = next_use(*slot, run);
        if (use <= farthest) continue;
        farthest = use;
        victim = slot;
      }
    }
    *victim = unit;
    const auto slot = victim - slots_.begin();
    int64_t& most = slot_numel_[static_cast<size_t>(slot)];
    most = std::max(most, numel(unit));
    return static_cast<int>(slot);
  }

  const ProgramInput& input_;
  bool gathers_ = false;  // any unit
  std::vector<Run> runs_;
  std::vector<size_t> run_of_;             // by site
  std::vector<std::vector<size_t>> uses_;  // by unit: runs
  std::vector<bool> completed_;            // by unit
  std::vector<int> slots_;                 // unit in each slot
  std::vector<int64_t> slot_numel_;
};

// Buffers handed out and taken back along the program. One that was given back may have to rest for
// a turn, so that what still reads it does so under the next compute.
template <typename Size>
class Pool {
 public:
  explicit Pool(bool rests) : resting_(rests ? 1 : 0) {}

  // The smallest free buffer that is large enough, or the largest there is.
  int take(Size size) {
    if (free_.size() <= resting_) {
      sizes_.push_back(size);
      return static_cast<int>(sizes_.size()) - 1;
    }
    const auto better = [&](int a, int b) {
      const Size of_a = size_of(a), of_b = size_of(b);
      return (of_a >= size) == (of_b >= size) ? (of_a >= size ? of_a < of_b : of_a > of_b)
                                              : of_a >= size;
    };
    const auto rested = free_.end() - static_cast<std::ptrdiff_t>(resting_);
    const auto best = std::min_element(free_.begin(), rested, better);
    const int buffer = *best;
    free_.erase(best);
    Size& most = sizes_[static_cast<size_t>(buffer)];
    most = std::max(most, size);
    return buffer;
  }
  // Takes that very one, if it is free.
  bool take_again(int buffer) {
    const auto at = std::find(free_.begin(), free_.end(), buffer);
    if (at == free_.end()) return false;
    free_.erase(at);
    return true;
  }
  void give_back(int buffer) { free_.push_back(buffer); }
  // What each buffer has to hold.
  const std::vector<Size>& sizes() const { return sizes_; }

 private:
  Size size_of(int buffer) const { return sizes_[static_cast<size_t>(buffer)]; }

  const size_t resting_;
  std::vector<int> free_;  // longest free first
  std::vector<Size> sizes_;
};

// Gradient slots: a unit holds one a micro-batch, from the first backward that touches its
// parameters until its gradients are handed to landing.
class GradientSlots {
 public:
  explicit GradientSlots(const ProgramInput& input)
      : input_(input),
        units_(input.layout.units()),
        pool_(input.overlap),
        sums_(input.overlap),
        own_(units_.size()),
        sum_slot_(units_.size(), kNone) {
    slot_of_.resize(units_.size() * static_cast<size_t>(input.micro_batches), kNone);
    for (const Unit& unit : units_) owners_.push_back(trainable_owners(unit));
    first_user_.resize(units_.size(), kNone);
    for (size_t u = units_.size(); u-- > 0;) {
      for (int owner : owners_[u]) first_user_[static_cast<size_t>(owner)] = static_cast<int>(u);
    }
  }

  const std::vector<int>& slot_of() const { return slot_of_; }
  const std::vector<int64_t>& slot_numel() const { return pool_.sizes(); }
  const std::vector<int>& sum_slot() const { return sum_slot_; }
  const std::vector<int64_t>& sum_numel() const { return sums_.sizes(); }

  // A backward: takes slots for what it touches first, and appends the reductions of what no
  // earlier unit uses.
  void pass(const Action& backward, std::vector<Action>& actions) {
    const auto& owners = owners_[static_cast<size_t>(backward.unit)];
    for (int owner : owners) {
      int& held = slot(owner, backward.micro_batch);
      if (held != kNone) continue;
      // In plain order every micro-batch repeats the first one's assignment.
      const int before = input_.order == UnitOrder::plain && backward.micro_batch > 0
                             ? slot(owner, backward.micro_batch - 1)
                             : kNone;
      held = pool_.take_again(before) ? before : take(owner);
    }
    for (int owner : owners) {
      if (first_user_[static_cast<size_t>(owner)] != backward.unit) continue;
      Action reduce{Op::reduce, owner, backward.micro_batch};
      reduce.slot = slot(owner, backward.micro_batch);
      actions.push_back(reduce);
      give_back(owner, reduce.slot);
      if (input_.sums != GradientSums::none) add_up(reduce);
    }
  }

 private:
  static std::vector<int> trainable_owners(const Unit& unit) {
    std::vector<int> owners;
    for (const ParameterRef& ref : unit.parameters) {
      if (ref.trainable) add(owners, ref.unit);
    }
    return owners;
  }

  int& slot(int owner, int micro_batch) {
    return slot_of_[static_cast<size_t>(micro_batch) * units_.size() + static_cast<size_t>(owner)];
  }

  int take(int owner) {
    auto& own = own_[static_cast<size_t>(owner)];
    if (own.empty()) return pool_.take(units_[static_cast<size_t>(owner)].trainable.numel);
    const int slot = own.back();
    own.pop_back();
    return slot;
  }
  void give_back(int owner, int slot) {
    input_.recycle_gradients ? pool_.give_back(slot)
                             : own_[static_cast<size_t>(owner)].push_back(slot);
  }

  // The sum takes a buffer from the first micro-batch to the last.
  void add_up(const Action& reduce) {
    int& slot = sum_slot_[static_cast<size_t>(reduce.unit)];
    const int64_t numel = units_[static_cast<size_t>(reduce.unit)].trainable.numel;
    const int64_t parts = input_.sums == GradientSums::whole ? 1 : input_.layout.world_size();
    if (reduce.micro_batch == 0) slot = sums_.take(numel / parts);
    if (reduce.micro_batch == input_.micro_batches - 1) sums_.give_back(slot);
  }

  const ProgramInput& input_;
  const std::vector<Unit>& units_;
  Pool<int64_t> pool_;
  Pool<int64_t> sums_;
  std::vector<std::vector<int>> own_;     // by unit: its free slots, where they are not shared
  std::vector<std::vector<int>> owners_;  // by unit: whose gradients its backward adds to
  std::vector<int> first_user_;           // by unit: the last one in backward to add
  std::vector<int> slot_of_;
  std::vector<int> sum_slot_;  // by unit
};

// Places of outputs: from the forward that writes one to the last compute that reads it. One that
// waits for backward elsewhere gives its place back in between. Tiles write one output together:
// that of the last of them. The last layer's tiles read it themselves, in backward; without tiles
// the last layer has none.
class Places {
 public:
  explicit Places(const ProgramInput& input)
      : input_(input),
        units_(input.layout.units()),
        last_layer_(units_.back()),
        pool_(input.overlap && any_stored()) {}

  const std::vector<uint64_t>& place_bytes() const { return pool_.sizes(); }

  // Brings back what the backward needs.
  void restore(const Action& backward, std::vector<Action>& actions) {
    const int unit = of(backward).input_unit();
    if (unit < 0 || place_.contains({unit, backward.micro_batch})) return;
    Action action{Op::restore, unit, backward.micro_batch};
    action.output = take(unit, backward.micro_batch);
    actions.push_back(action);
  }

  // Says where a compute's input and output lie.
  void enter(Action& compute) {
    const int m = compute.micro_batch;
    const Unit& unit = of(compute);
    if (unit.input_unit() >= 0) compute.input = place_.at({unit.input_unit(), m});
    const bool forward = compute.op == Op::forward;
    if (forward ? !has_output(unit) : !reads_own_output(unit)) return;
    const bool begins = forward && unit.first_tile == compute.unit;
    compute.output = begins ? take(unit.last_tile, m) : place_.at({unit.last_tile, m});
  }

  // Gives back what nobody reads any more.
  void leave(const Action& compute, std::vector<Action>& actions) {
    const int m = compute.micro_batch;
    const Unit& unit = of(compute);
    const bool forward = compute.op == Op::forward;
    if (compute.unit != (forward ? unit.last_tile : unit.first_tile)) return;
    if (forward && is_stored(compute.unit)) {
      Action save{Op::save, compute.unit, m};
      save.output = compute.output;
      actions.push_back(save);
    }
    if (reads_own_output(unit) && !(forward && input_.training)) give_back(unit.last_tile, m);
    if (unit.input_unit() < 0) return;
    const bool read_again = forward && input_.training && !is_stored(unit.input_unit());
    if (!read_again) give_back(unit.input_unit(), m);
  }

 private:
  const Unit& of(const Action& compute) const { return units_[static_cast<size_t>(compute.unit)]; }
  bool reads_own_output(const Unit& unit) const {
    return unit.layer == last_layer_.layer && unit.first_tile != unit.last_tile;
  }
  bool has_output(const Unit& unit) const {
    return unit.layer != last_layer_.layer || reads_own_output(unit);
  }
  // The last layer's input is read by its backward at once.
  bool is_stored(int unit) const {
    return input_.training && unit < last_layer_.input_unit() &&
           input_.checkpoint_tier[static_cast<size_t>(unit)] != Tier::device;
  }
  bool any_stored() const {
    for (int unit = 0; unit < last_layer_.input_unit(); ++unit) {
      if (is_stored(unit)) return true;
    }
    return false;
  }
  int take(int unit, int micro_batch) {
    const int place = pool_.take(input_.output_bytes[static_cast<size_t>(unit)]);
    place_[{unit, micro_batch}] = place;
    return place;
  }
  void give_back(int unit, int micro_batch) {
    const auto at = place_.find({unit, micro_batch});
    pool_.give_back(at->second);
    place_.erase(at);
  }

  const ProgramInput& input_;
  const std::vector<Unit>& units_;
  const Unit& last_layer_;  // the last of its units
  Pool<uint64_t> pool_;
  std::map<std::pair<int, int>, int> place_;  // of (unit, micro-batch)
};

// Gradients of outputs: each is written by the backward of a layer, of all its tiles, and read by
// the next of its micro-batch. Returns how many places they take.
int assign_output_grads(std::vector<Action>& order, const std::vector<Unit>& units) {
  Pool<int> pool(/*rests=*/false);
  std::map<int, int> read, written;  // by micro-batch
  for (Action& action : order) {
    if (action.op != Op::backward) continue;
    const Unit& unit = units[static_cast<size_t>(action.unit)];
    const int m = action.micro_batch;
    if (action.unit == unit.last_tile) {
      read[m] = written.contains(m) ? written[m] : kNone;
      written[m] = unit.input_unit() >= 0 ? pool.take(1) : kNone;
    }
    action.output_grad = read[m];
    action.input_grad = written[m];
    if (action.unit == unit.first_tile && read[m] != kNone) pool.give_back(read[m]);
  }
  return static_cast<int>(pool.sizes().size());
}

}  // namespace

Program make_program(const ProgramInput& input) {
  Program program;
  std::vector<Action> order = compute_order(input);
  if (input.training) {
    program.output_grads = assign_output_grads(order, input.layout.units());
  }
  Window window(input, order);
  GradientSlots gradients(input);
  Places places(input);
  for (size_t site = 0; site < order.size(); ++site) {
    Action& action = order[site];
    window.bring(site, action.micro_batch, program.actions);
    const bool backward = action.op == Op::backward;
    if (backward) places.restore(action, program.actions);
    places.enter(action);
    // With overlap the next checkpoint comes back under this backward.
    if (input.overlap && site + 1 < order.size() && order[site + 1].op == Op::backward) {
      places.restore(order[site + 1], program.actions);
    }
    program.actions.push_back(action);
    places.leave(action, program.actions);
    if (backward) gradients.pass(action, program.actions);
  }
  program.window_numel = window.slot_numel();
  program.grad_slot = gradients.slot_of();
  program.grad_slot_numel = gradients.slot_numel();
  program.sum_slot = gradients.sum_slot();
  program.sum_slot_numel = gradients.sum_numel();
  program.place_bytes = places.place_bytes();
  return program;
}

}  // namespace strata::engine
