// A oneTBB flow graph that one thread of its own runs.
//
// oneTBB's shared workers may be none (a process bound to one core) or busy elsewhere, and a node
// that is never run would leave whoever waits for its work waiting for ever. Here nodes run one at
// a time, on this thread; between them it sleeps.
#pragma once

#include <oneapi/tbb/flow_graph.h>
#include <oneapi/tbb/task_arena.h>

#include <future>
#include <optional>
#include <thread>

namespace strata::offload {

class GraphThread {
 public:
  GraphThread() {
    std::future<void> running = started_.get_future();
    thread_ = std::thread([this] { arena_.execute([this] { run(); }); });
    running.wait();
  }
  ~GraphThread() { stop(); }
  GraphThread(const GraphThread&) = delete;
  GraphThread& operator=(const GraphThread&) = delete;

  oneapi::tbb::flow::graph& graph() { return *graph_; }

  // Waits for the nodes' work, of which there will be no more: before nodes are destroyed.
  void stop() {
    if (!thread_.joinable()) return;
    graph_->release_wait();
    thread_.join();
  }

 private:
  void run() {
    graph_.emplace();  // belongs to the arena of the thread that makes it
    graph_->reserve_wait();
    started_.set_value();
    graph_->wait_for_all();
  }

  oneapi::tbb::task_arena arena_{1};
  std::optional<oneapi::tbb::flow::graph> graph_;
  std::promise<void> started_;
  std::thread thread_;
};

}  // namespace strata::offload
