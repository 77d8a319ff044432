// Behind OptimizerPipeline: a job for each sub-group, and the flow graph that jobs go round.
#pragma once

#include <oneapi/tbb/flow_graph.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/device/compute_spans.h"
#include "offload/graph_thread.h"
#include "offload/handover.h"
#include "offload/optimizer_pipeline.h"

namespace strata::offload {

// The flow graph:
//
//   read -> update -> write
//
// A job goes round it once for each update of its sub-group. It enters at read when it has a
// staging buffer, and passes to update when its state is there and it was submitted; one that is
// updated in place waits there always. A job is owned by whoever holds it: one node, or the pump or
// queue that works for it.
class OptimizerPipeline::Graph {
 public:
  Graph(const Parts& parts, const StagingLayout& layout, TierManager& tiers, UpdateFn update,
        bool overlap);
  ~Graph();

  void read_ahead(std::span<const int32_t> order);
  void submit(int32_t sub_group, Purpose purpose, const Event& gradient);
  bool recall(int32_t sub_group);
  bool has_parameters(int32_t sub_group) const;
  Event parameters(int32_t sub_group);
  void drain();
  void settle();
  void await_writes();
  void finish() noexcept;
  void abandon(std::exception_ptr failure);
  LinkBytes promised() const;

 private:
  struct Job;
  using Node = oneapi::tbb::flow::async_node<Job*, Job*>;
  using Stage = void (Graph::*)(Job& job);

  enum class Where : uint8_t {
    away,      // its state is on nvme
    reading,   // on its way into a staging buffer
    there,     // ready for the update, which nobody has asked for
    passing,   // on its way to the update
    updating,  // the update is enqueued
    writing,   // on its way back
  };

  struct Submission {
    Purpose purpose = Purpose::update;
    Event gradient;  // what the update waits for
    int64_t since_ns = 0;
    int from_slot = 0, to_slot = 0;
  };

  struct Job {
    // Constant after construction.
    Graph* graph = nullptr;
    const SubGroup* group = nullptr;
    bool staged = false;
    bool on_disk = false;      // its state, or a part of it
    bool loads_param = false;  // the update reads parameters that lie elsewhere

    // Protected by mutex_.
    Where where = Where::there;
    bool expected = false;   // may be brought before it is submitted
    bool due = false;        // in due_
    bool submitted = false;  // and not taken by the update yet
    Submission submission;
    int64_t there_ns = 0;  // when its state had come
    int passes = 0;        // submitted, parameters not in place
    int pending = 0;       // things under way that the job waits for
    Event params;          // where the last pass's parameters are in place
    Job* next_due = nullptr;

    // The holder's.
    std::byte* staging = nullptr;
    UpdateSpans spans;
    int from_slot = 0, to_slot = 0;
  };

  // Jobs in the order in which they came.
  class JobQueue {
   public:
    Job* front() const { return head_; }
    void push(Job& job) {
      job.next_due = nullptr;
      (head_ == nullptr ? head_ : tail_->next_due) = &job;
      tail_ = &job;
    }
    void pop() { head_ = head_->next_due; }

   private:
    Job* head_ = nullptr;
    Job* tail_ = nullptr;
  };

  // A task that reports when a queue has come to it. A poisoned queue skips and destroys it, which
  // reports too: a job never gets stuck.
  class Arrival {
   public:
    using Arrive = void (*)(void* job, std::exception_ptr failure) noexcept;
    Arrival(Job& job, Arrive arrive) : job_(&job), arrive_(arrive) {}
    Arrival(Arrival&& other) noexcept
        : job_(std::exchange(other.job_, nullptr)),
          arrive_(other.arrive_),
          reached_(other.reached_) {}
    ~Arrival();
    void operator()() { reached_ = true; }

   private:
    Job* job_;
    Arrive arrive_;
    bool reached_ = false;
  };

  // A node's body. It holds nothing of its own: what it needs comes with the job.
  template <Stage stage>
  static auto run() {
    return [](Job* job, auto&&...) {
      take_over(job);
      (job->graph->*stage)(*job);
    };
  }
  void read(Job& job);
  void update(Job& job);
  void write(Job& job);

  LinkBytes traffic(const Job& job, Purpose purpose) const;
  static bool writes(const Job& job, Purpose purpose) {
    return job.on_disk && purpose != Purpose::restoration;
  }
  std::span<std::byte> state_of(const Job& job, bool restores) const;
  IoCommand state_command(const Job& job, io::Op op) const;
  void update_on_device(Job& job, const Event& gradient);
  void place(Job& job);
  void enqueue_update(Job& job, const Submission& submission);
  std::byte* staged_grad(const Job& job) const {
    return job.staging + staging_.layout().state_bytes;
  }
  std::byte* staged_param(const Job& job) const {
    return staged_grad(job) + staging_.layout().grad_bytes;
  }
  void load_parameters(Job& job);
  void copy_parameters(Job& job, Queue& queue, CopyDirection direction, Arrival::Arrive then);
  bool enter(Job& job, Where where);
  void transfer(Job& job, IoCommand command, Arrival::Arrive then);
  void note_wait(int32_t sub_group, int64_t since_ns, int64_t there_ns) noexcept;

  // One of the things that a job waits for is done, well or not: in read, update and write.
  static void arrive_read(void* job, std::exception_ptr failure) noexcept;
  static void arrive_updated(void* job, std::exception_ptr failure) noexcept;
  static void arrive_written(void* job, std::exception_ptr failure) noexcept;
  bool last_arrival(Job& job, std::exception_ptr failure) noexcept;
  void pass_on(Job& job, Node& from) noexcept;

  // With mutex_ held.
  void start_reads();
  Job* next_to_read();
  Job* first_due();
  void pop_due();
  void offer(Job& job);
  void put_back(Job& job);
  void move(Job& job, Where where);
  void drop_reads();
  void end_pass(Job& job, const Event& params);
  void fail(std::exception_ptr failure) noexcept;
  bool at_rest() { return under_way_ == 0 && first_due() == nullptr; }

  // Waits for it, or for a failure.
  template <typename Condition>
  void wait_until(std::unique_lock<std::mutex>& lock, const Condition& condition) {
    changed_.wait(lock, [&] { return failure_ != nullptr || condition(); });
  }
  void rethrow_failure();

  // Constant after construction.
  const Parts parts_;
  const UpdateFn update_fn_;
  const bool overlap_;
  ComputeSpans host_updates_;
  ComputeSpans device_updates_;
  Event device_done_;  // the driver's: behind all updates on the device

  mutable std::mutex mutex_;  // protects what follows
  std::condition_variable changed_;
  std::vector<Job> jobs_;  // by sub-group
  StagingBuffers staging_;
  JobQueue due_;                    // submitted, to be read
  std::span<const int32_t> ahead_;  // to be read ahead, when nothing is due
  size_t next_ahead_ = 0;           // in ahead_
  size_t under_way_ = 0;            // jobs that are neither away nor there
  int64_t passes_ = 0;              // of all jobs
  int64_t to_write_ = 0;            // of them, those whose state is not on nvme yet
  LinkBytes promised_ = {};
  std::exception_ptr failure_;

  GraphThread thread_;
  Node read_;
  Node update_;
  Node write_;
};

}  // namespace strata::offload
