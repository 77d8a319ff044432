// Which window slot a unit is gathered into where the caller decides the order of units.
//
// The order of a step is recorded and expected again in the next one: the unit that comes next in
// it is gathered ahead. A caller that deviates is recorded anew from there on, and waits for
// nothing but the unit it asks for. Pure bookkeeping; driver thread.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace strata::engine {

class RecordedGathers {
 public:
  struct Bring {
    int unit = 0;
    int slot = 0;
  };

  // `units` in all, of which some pass through `slots` buffers. With `ahead` the next unit of the
  // record is brought early, if a buffer is free.
  RecordedGathers(size_t units, size_t slots, bool ahead);

  // Holds a unit once more. Returns what to bring now: the unit, unless it is there, then the one
  // ahead; holds until the next call. Throws ConfigError when every slot is held.
  std::span<const Bring> hold(int unit);
  void let_go(int unit);
  bool is_held(int unit) const { return holds_[static_cast<size_t>(unit)] > 0; }
  // An update changes all parameters: nothing is there any more, and the record starts again.
  // Nothing is held.
  void start_again();

 private:
  static constexpr int kNone = -1;

  void record(int unit);
  // Place of the next use in the record; its size for none.
  size_t next_use(int unit) const;
  // A slot that holds nothing held, and nothing used before `use`: what is used last goes. kNone
  // where there is none.
  int slot_for(size_t use) const;
  void bring(int unit, int slot);

  const bool ahead_;
  std::vector<int> holds_;    // by unit
  std::vector<int> slot_of_;  // by unit
  std::vector<int> unit_in_;  // by slot
  std::vector<int> record_;   // units as they were held
  size_t next_ = 0;           // in record_
  std::vector<Bring> brought_;
};

}  // namespace strata::engine
