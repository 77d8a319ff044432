#include "offload/optimizer_pipeline.h"

#include <oneapi/tbb/flow_graph.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/device/compute_spans.h"
#include "offload/handover.h"
#include "strata/clock.h"
#include "strata/error.h"
#include "strata/wait_scope.h"

namespace strata::offload {
namespace {

namespace flow = oneapi::tbb::flow;

constexpr const char* kStagingName = "optimizer staging";

}  // namespace

StagingLayout staging_layout(const TrainingStateSpec& spec, int buffers) {
  StagingLayout layout;
  for (const SubGroup& group : spec.sub_groups) {
    const auto bytes = [&](StateKind kind) {
      return static_cast<uint64_t>(group.grains.grains() * spec.grain_bytes(kind));
    };
    layout.state_bytes = std::max(layout.state_bytes, spec.extent_bytes(group));
    if (group.param_tier != group.update_tier()) {
      layout.param_bytes = std::max(layout.param_bytes, bytes(StateKind::param));
    }
  }
  layout.buffers = layout.buffer_bytes() == 0 ? 0 : buffers;
  return layout;
}

std::vector<Reservation> reservations_for(const StagingLayout& layout) {
  if (layout.buffers == 0) return {};
  return {{Tier::host, StateKind::other, kStagingName,
           static_cast<uint64_t>(layout.buffers) * layout.buffer_bytes()}};
}

// The flow graph:
//
//   [staged] -> [limiter] -> read -> update -> write -> finish
//
// A job passes from read to update when its state is there and it was submitted; one that is
// updated in place needs no read and starts there.
//
// A job is owned by whoever holds it: one node, or the pump or queue that works for it.
class OptimizerPipeline::Graph {
 public:
  Graph(const Parts& parts, const StagingLayout& layout, TierManager& tiers, UpdateFn update,
        bool overlap);
  ~Graph();

  void read_ahead();
  void submit(int32_t sub_group);
  void discard();
  void drain();
  void settle();

 private:
  struct Job;
  using Node = flow::async_node<Job*, Job*>;
  using Gateway = Node::gateway_type;
  using Stage = void (Graph::*)(Job& job);

  struct Job {
    Graph* graph = nullptr;
    const SubGroup* group = nullptr;
    std::byte* staging = nullptr;  // null: updated in place
    UpdateSpans spans;
    // Both count what the job still waits for.
    std::atomic<int> gate = 0;     // before the update: it was submitted, its state is there
    std::atomic<int> pending = 0;  // in update and write
    // A job may still be writing what the last step left when the next step wants it read.
    // Protected by mutex_.
    bool under_way = false;
    bool wanted = false;
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
      return flow::continue_msg();
    };
  }
  bool on_disk(const SubGroup& group) const { return parts_.state.spec().extent_bytes(group) > 0; }
  bool needs_staging(const SubGroup& group) const;
  // Whether the update reads parameters that lie elsewhere.
  bool loads_param(const SubGroup& group) const;
  int things_before_update(const SubGroup& group) const;
  void want(Job& job);
  void let_through(Job& job);
  void place(Job& job);
  void read(Job& job);
  void update(Job& job);
  void write(Job& job);
  void finish(Job& job);

  void transfer(Job& job, io::Op op, Extent extent,
                void (*then)(void*, std::exception_ptr) noexcept);
  void fail(std::exception_ptr failure) noexcept;
  // One of the things that a job waits for is done, well or not: before, in and after its update.
  static void arrive_read(void* job, std::exception_ptr failure) noexcept;
  static void arrive_updated(void* job, std::exception_ptr failure) noexcept;
  static void arrive_written(void* job, std::exception_ptr failure) noexcept;
  void arrive(Job& job, std::atomic<int>& count, Node& node, std::exception_ptr failure) noexcept;
  void rethrow_failure();
  void note_wait() noexcept;

  // Constant after construction.
  const Parts parts_;
  const StagingLayout layout_;
  const UpdateFn update_fn_;
  const Arena staging_;
  const bool overlap_;
  ComputeSpans host_updates_;
  ComputeSpans device_updates_;

  std::vector<Job> jobs_;       // by sub-group
  bool reading_ahead_ = false;  // the driver's
  // Since when no update has been running; the updates' queues and the driver take turns at it.
  std::atomic<int64_t> idle_since_ns_ = 0;
  std::atomic<bool> failed_ = false;
  std::atomic<bool> discarding_ = false;

  std::mutex mutex_;  // protects what follows
  std::vector<std::byte*> free_staging_;
  std::exception_ptr failure_;

  flow::graph graph_;
  flow::queue_node<Job*> staged_;
  flow::limiter_node<Job*> limiter_;
  Node read_;
  Node update_;
  Node write_;
  flow::function_node<Job*> finish_;
};

OptimizerPipeline::Graph::Graph(const Parts& parts, const StagingLayout& layout, TierManager& tiers,
                                UpdateFn update, bool overlap)
    : parts_(parts),
      layout_(layout),
      update_fn_(std::move(update)),
      staging_(tiers.claim(kStagingName)),
      overlap_(overlap),
      host_updates_(parts.host_update, parts.traffic),
      device_updates_(parts.device_update, parts.traffic),
      jobs_(parts.state.spec().sub_groups.size()),
      staged_(graph_),
      limiter_(graph_, static_cast<size_t>(std::max(1, layout.buffers))),
      read_(graph_, flow::serial, run<&Graph::read>()),
      update_(graph_, flow::serial, run<&Graph::update>()),
      write_(graph_, flow::serial, run<&Graph::write>()),
      finish_(graph_, flow::serial, run<&Graph::finish>()) {
  for (int i = 0; i < layout_.buffers; ++i) {
    free_staging_.push_back(staging_.data() + static_cast<uint64_t>(i) * layout_.buffer_bytes());
  }
  for (const SubGroup& group : parts_.state.spec().sub_groups) {
    Job& job = jobs_[static_cast<size_t>(group.index)];
    job.graph = this;
    job.group = &group;
    job.gate.store(things_before_update(group));
  }
  flow::make_edge(staged_, limiter_);
  flow::make_edge(limiter_, read_);
  flow::make_edge(flow::output_port<0>(read_), update_);
  flow::make_edge(flow::output_port<0>(update_), write_);
  flow::make_edge(flow::output_port<0>(write_), finish_);
}

// Whoever passes a job on may still be inside the graph when the job is done already: the graph
// goes only after queues and pump are through with it.
OptimizerPipeline::Graph::~Graph() {
  discard();
  for (Queue* queue :
       {&parts_.host_update, &parts_.device_update, &parts_.copy_in, &parts_.copy_out}) {
    queue->finish();
  }
  if (parts_.pump != nullptr) parts_.pump->quiesce();
  graph_.wait_for_all();
  const std::lock_guard lock(mutex_);  // after the last finish()
}

bool OptimizerPipeline::Graph::needs_staging(const SubGroup& group) const {
  return on_disk(group) || group.param_tier != group.update_tier();
}

bool OptimizerPipeline::Graph::loads_param(const SubGroup& group) const {
  return parts_.state.spec().codec(StateKind::master) == Codec::split16 &&
         group.param_tier != group.update_tier();
}

// It was submitted; it has a buffer, its state and its parameters, as far as it needs them.
int OptimizerPipeline::Graph::things_before_update(const SubGroup& group) const {
  return 1 + (needs_staging(group) ? 1 : 0) + (on_disk(group) ? 1 : 0) +
         (loads_param(group) ? 1 : 0);
}

// Starts a job that passes through staging, or leaves that to the end of its last write.
void OptimizerPipeline::Graph::want(Job& job) {
  const std::lock_guard lock(mutex_);
  if (job.under_way) {
    job.wanted = true;
  } else {
    job.under_way = true;
    hand_over(&job);
    staged_.try_put(&job);
  }
}

void OptimizerPipeline::Graph::read_ahead() {
  if (!overlap_) return;
  reading_ahead_ = true;
  for (Job& job : jobs_) {
    if (needs_staging(*job.group)) want(job);
  }
}

void OptimizerPipeline::Graph::submit(int32_t sub_group) {
  Job& job = jobs_[static_cast<size_t>(sub_group)];
  int64_t never = 0;
  idle_since_ns_.compare_exchange_strong(never, now_ns());
  let_through(job);
  if (!overlap_) settle();
}

void OptimizerPipeline::Graph::let_through(Job& job) {
  graph_.reserve_wait();  // given back once the job's writes are under way
  if (needs_staging(*job.group) && !reading_ahead_) want(job);
  arrive_read(&job, nullptr);
}

// What was read ahead goes through without being updated or written.
void OptimizerPipeline::Graph::discard() {
  if (!reading_ahead_) return;
  discarding_.store(true);
  for (Job& job : jobs_) {
    if (needs_staging(*job.group)) let_through(job);
  }
  graph_.wait_for_all();
  reading_ahead_ = false;
  discarding_.store(false);
}

void OptimizerPipeline::Graph::drain() {
  graph_.wait_for_all();
  reading_ahead_ = false;
  parts_.copy_in.synchronize();
  note_wait();
  idle_since_ns_.store(0);
  rethrow_failure();
}

void OptimizerPipeline::Graph::settle() {
  graph_.wait_for_all();
  parts_.copy_in.synchronize();
  if (parts_.pump != nullptr) parts_.pump->quiesce();
  graph_.wait_for_all();
  rethrow_failure();
}

void OptimizerPipeline::Graph::rethrow_failure() {
  if (!failed_) return;
  // A queue that failed knows the cause better than the task it skipped.
  parts_.host_update.synchronize();
  parts_.device_update.synchronize();
  parts_.copy_in.synchronize();
  parts_.copy_out.synchronize();
  const std::lock_guard lock(mutex_);
  std::rethrow_exception(failure_);
}

// Where each of the job's spans lies: in place, or in its staging buffer.
void OptimizerPipeline::Graph::place(Job& job) {
  const SubGroup& group = *job.group;
  const TrainingStateSpec& spec = parts_.state.spec();
  UpdateSpans& spans = job.spans;
  spans.sub_group = group.index;
  spans.grains = group.grains;
  spans.tier = group.update_tier();
  std::byte* next = job.staging;
  for (size_t i = 0; i < kOptimizerKindCount; ++i) {
    if (group.state_tier[i] == Tier::nvme) {
      spans.state[i] = next;
      next += spec.padded_bytes(kOptimizerKinds[i], group.grains.grains());
    } else {
      spans.state[i] = parts_.state.resident(kOptimizerKinds[i], group.grains.begin);
    }
  }
  spans.grad = parts_.state.resident(StateKind::grad, group.grains.begin);
  spans.param = group.param_tier == group.update_tier()
                    ? parts_.state.resident(StateKind::param, group.grains.begin)
                    : job.staging + layout_.state_bytes;
}

void OptimizerPipeline::Graph::read(Job& job) {
  {
    // The limiter lets in no more jobs than there are buffers.
    const std::lock_guard lock(mutex_);
    job.staging = free_staging_.back();
    free_staging_.pop_back();
  }
  const SubGroup& group = *job.group;
  if (on_disk(group) && !failed_) {
    transfer(job, io::Op::read, parts_.state.store()->current(group.index), &Graph::arrive_read);
  } else if (on_disk(group)) {
    arrive_read(&job, nullptr);
  }
  if (loads_param(group)) {
    const auto bytes = static_cast<size_t>(group.grains.grains() *
                                           parts_.state.spec().grain_bytes(StateKind::param));
    parts_.copy_out.copy(job.staging + layout_.state_bytes,
                         parts_.state.resident(StateKind::param, group.grains.begin), bytes,
                         CopyDirection::device_to_host,
                         {StateKind::param, group.index, "parameters to update"});
    parts_.copy_out.run(Arrival(job, &Graph::arrive_read));
  }
  arrive_read(&job, nullptr);
}

void OptimizerPipeline::Graph::update(Job& job) {
  job.gate.store(things_before_update(*job.group));  // for the next step
  job.pending.store(1);
  Arrival arrival(job, &Graph::arrive_updated);
  if (failed_ || discarding_) {
    arrival();
    return;
  }
  place(job);
  const bool on_device = job.spans.tier == Tier::device;
  Queue& queue = on_device ? parts_.device_update : parts_.host_update;
  ComputeSpans& updates = on_device ? device_updates_ : host_updates_;
  try {
    queue.run([this] { note_wait(); });
    updates.begin();
    update_fn_(job.spans, queue);
    updates.end({StateKind::master, job.group->index, "update"});
    queue.run([this] { idle_since_ns_.store(now_ns()); });
    queue.run(std::move(arrival));
  } catch (...) {
    fail(std::current_exception());
  }
}

void OptimizerPipeline::Graph::write(Job& job) {
  const SubGroup& group = *job.group;
  const bool updated = !failed_ && !discarding_;
  const bool to_disk = updated && on_disk(group);
  const bool to_device = updated && group.param_tier != group.update_tier();
  job.pending.store(1 + (to_disk ? 1 : 0) + (to_device ? 1 : 0));
  if (to_disk) {
    transfer(job, io::Op::write, parts_.state.store()->next(group.index), &Graph::arrive_written);
  }
  if (to_device) {
    const auto bytes = static_cast<size_t>(group.grains.grains() *
                                           parts_.state.spec().grain_bytes(StateKind::param));
    parts_.copy_in.copy(parts_.state.resident(StateKind::param, group.grains.begin),
                        job.spans.param, bytes, CopyDirection::host_to_device,
                        {StateKind::param, group.index, "updated parameters"});
    parts_.copy_in.run(Arrival(job, &Graph::arrive_written));
  }
  arrive_written(&job, nullptr);
  graph_.release_wait();
}

void OptimizerPipeline::Graph::finish(Job& job) {
  {
    const std::lock_guard lock(mutex_);
    if (job.staging == nullptr) return;
    free_staging_.push_back(std::exchange(job.staging, nullptr));
    job.under_way = std::exchange(job.wanted, false);
    if (job.under_way) {
      hand_over(&job);
      staged_.try_put(&job);
    }
  }
  limiter_.decrementer().try_put(flow::continue_msg());
}

void OptimizerPipeline::Graph::transfer(Job& job, io::Op op, Extent extent,
                                        void (*then)(void*, std::exception_ptr) noexcept) {
  IoCommand command;
  command.op = op;
  command.file = &parts_.state.store()->file();
  command.offset = extent.offset;
  command.data = job.staging;
  command.bytes = extent.bytes;
  command.tag = {StateKind::master, job.group->index,
                 op == io::Op::read ? "read state" : "write state"};
  parts_.pump->submit(command, {then, &job});
}

void OptimizerPipeline::Graph::arrive(Job& job, std::atomic<int>& count, Node& node,
                                      std::exception_ptr failure) noexcept {
  if (failure != nullptr) fail(std::move(failure));
  // Release what this part did, acquire what the others did.
  if (count.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  hand_over(&job);
  node.gateway().try_put(&job);
}

void OptimizerPipeline::Graph::arrive_read(void* context, std::exception_ptr failure) noexcept {
  Job& job = *static_cast<Job*>(context);
  job.graph->arrive(job, job.gate, job.graph->read_, std::move(failure));
}

void OptimizerPipeline::Graph::arrive_updated(void* context, std::exception_ptr failure) noexcept {
  Job& job = *static_cast<Job*>(context);
  job.graph->arrive(job, job.pending, job.graph->update_, std::move(failure));
}

void OptimizerPipeline::Graph::arrive_written(void* context, std::exception_ptr failure) noexcept {
  Job& job = *static_cast<Job*>(context);
  job.graph->arrive(job, job.pending, job.graph->write_, std::move(failure));
}

OptimizerPipeline::Graph::Arrival::~Arrival() {
  if (job_ == nullptr) return;
  arrive_(job_, reached_
                    ? nullptr
                    : std::make_exception_ptr(DeviceError("a queue failed during the update")));
}

void OptimizerPipeline::Graph::fail(std::exception_ptr failure) noexcept {
  const std::lock_guard lock(mutex_);
  if (failure_ == nullptr) failure_ = std::move(failure);
  failed_.store(true);
}

// The update stood still from idle_since_ns_ until now: nothing had arrived, or, after the last
// update, its writes were not done.
void OptimizerPipeline::Graph::note_wait() noexcept {
  const int64_t since = idle_since_ns_.load();
  if (since == 0 || parts_.pump == nullptr) return;
  record_wait(parts_.traffic, {StateKind::master, -1, kWaitLabel}, "optimizer", since);
}

OptimizerPipeline::OptimizerPipeline(const Parts& parts, const StagingLayout& layout,
                                     TierManager& tiers, UpdateFn update, bool overlap)
    : graph_(std::make_unique<Graph>(parts, layout, tiers, std::move(update), overlap)) {}

OptimizerPipeline::~OptimizerPipeline() = default;

void OptimizerPipeline::read_ahead() { graph_->read_ahead(); }
void OptimizerPipeline::submit(int32_t sub_group) { graph_->submit(sub_group); }
void OptimizerPipeline::discard() { graph_->discard(); }
void OptimizerPipeline::drain() { graph_->drain(); }
void OptimizerPipeline::settle() { graph_->settle(); }

}  // namespace strata::offload
