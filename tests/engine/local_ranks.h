// Ranks as threads, for tests.
#pragma once

#include <exception>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "strata/world.h"

namespace strata::testing_support {

// Runs body(world) on a thread for each of `size` ranks, and returns what each threw; "" for none.
inline std::vector<std::string> failures_of_ranks(int size,
                                                  const std::function<void(const World&)>& body) {
  std::vector<World> worlds = World::local(size);
  std::vector<std::string> failures(worlds.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < worlds.size(); ++rank) {
    threads.emplace_back([&, rank] {
      const World world = std::move(worlds[rank]);
      try {
        body(world);
      } catch (const std::exception& error) {
        failures[rank] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return failures;
}

}  // namespace strata::testing_support
