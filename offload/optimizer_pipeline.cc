#include "offload/optimizer_pipeline.h"

#include <oneapi/tbb/flow_graph.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <utility>
#include <vector>

#include "strata/clock.h"
#include "strata/error.h"

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
    layout.state_bytes = std::max(
        layout.state_bytes, static_cast<uint64_t>(group.nvme_kinds()) * bytes(StateKind::master));
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
//   submit -> [staged] -> [limiter] -> read -> update -> write -> finish
//                \ updated in place: ------------^
//
// A job is owned by whoever holds it: one node, or the pump or queue that works for it.
class OptimizerPipeline::Graph {
 public:
  Graph(const Parts& parts, const StagingLayout& layout, TierManager& tiers, UpdateFn update,
        bool overlap);
  ~Graph();

  void submit(int32_t sub_group);
  void drain();

 private:
  struct Job;
  using Node = flow::async_node<Job*, Job*>;
  using Gateway = Node::gateway_type;

  struct Job {
    Graph* graph = nullptr;
    const SubGroup* group = nullptr;
    std::byte* staging = nullptr;  // null: updated in place
    UpdateSpans spans;
    Gateway* gateway = nullptr;  // where the job goes on when what it waits for is done
    // Things it waits for. Set by exchange, so that what the last of them did is also ordered
    // before the next node where ThreadSanitizer cannot see into oneTBB's hand-over.
    std::atomic<int> pending = 0;
  };

  // A task that reports when a queue has come to it. A poisoned queue skips and destroys it, which
  // reports too: a job never gets stuck.
  class Arrival {
   public:
    explicit Arrival(Job& job) : job_(&job) {}
    Arrival(Arrival&& other) noexcept
        : job_(std::exchange(other.job_, nullptr)), reached_(other.reached_) {}
    ~Arrival();
    void operator()() { reached_ = true; }

   private:
    Job* job_;
    bool reached_ = false;
  };

  bool needs_staging(const SubGroup& group) const;
  void place(Job& job);
  void read(Job& job);
  void update(Job& job);
  void write(Job& job);
  void finish(Job& job);

  void transfer(Job& job, io::Op op, Extent extent);
  void fail(std::exception_ptr failure) noexcept;
  // One of the things that a job waits for is done, well or not.
  static void arrive(void* job, std::exception_ptr failure) noexcept;
  void note_wait() noexcept;

  // Constant after construction.
  const Parts parts_;
  const StagingLayout layout_;
  const UpdateFn update_fn_;
  const Arena staging_;
  const bool overlap_;

  std::vector<Job> jobs_;  // by sub-group
  // Since when no update has been running; the updates' queues and the driver take turns at it.
  std::atomic<int64_t> idle_since_ns_ = 0;
  std::atomic<bool> failed_ = false;

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
      jobs_(parts.state.spec().sub_groups.size()),
      staged_(graph_),
      limiter_(graph_, static_cast<size_t>(std::max(1, layout.buffers))),
      read_(graph_, flow::serial,
            [this](Job* job, Gateway& gateway) {
              job->gateway = &gateway;
              read(*job);
            }),
      update_(graph_, flow::serial,
              [this](Job* job, Gateway& gateway) {
                job->gateway = &gateway;
                this->update(*job);
              }),
      write_(graph_, flow::serial,
             [this](Job* job, Gateway& gateway) {
               job->gateway = &gateway;
               write(*job);
             }),
      finish_(graph_, flow::serial, [this](Job* job) {
        finish(*job);
        return flow::continue_msg();
      }) {
  for (int i = 0; i < layout_.buffers; ++i) {
    free_staging_.push_back(staging_.data() + static_cast<uint64_t>(i) * layout_.buffer_bytes());
  }
  for (const SubGroup& group : parts_.state.spec().sub_groups) {
    Job& job = jobs_[static_cast<size_t>(group.index)];
    job.graph = this;
    job.group = &group;
  }
  flow::make_edge(staged_, limiter_);
  flow::make_edge(limiter_, read_);
  flow::make_edge(flow::output_port<0>(read_), update_);
  flow::make_edge(flow::output_port<0>(update_), write_);
  flow::make_edge(flow::output_port<0>(write_), finish_);
}

OptimizerPipeline::Graph::~Graph() { graph_.wait_for_all(); }

bool OptimizerPipeline::Graph::needs_staging(const SubGroup& group) const {
  return group.nvme_kinds() > 0 || group.param_tier != group.update_tier();
}

void OptimizerPipeline::Graph::submit(int32_t sub_group) {
  Job* job = &jobs_[static_cast<size_t>(sub_group)];
  int64_t never = 0;
  idle_since_ns_.compare_exchange_strong(never, now_ns());
  graph_.reserve_wait();  // given back in finish()
  if (needs_staging(*job->group)) {
    staged_.try_put(job);
  } else {
    update_.try_put(job);
  }
  if (!overlap_) graph_.wait_for_all();
}

void OptimizerPipeline::Graph::drain() {
  graph_.wait_for_all();
  note_wait();
  idle_since_ns_.store(0);
  if (!failed_) return;
  // A queue that failed knows the cause better than the task it skipped.
  parts_.host_update.synchronize();
  parts_.device_update.synchronize();
  parts_.copy_in.synchronize();
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
      next += group.grains.grains() * spec.grain_bytes(kOptimizerKinds[i]);
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
  job.pending.exchange(1);
  if (job.group->nvme_kinds() > 0 && !failed_) {
    transfer(job, io::Op::read, parts_.state.store()->current(job.group->index));
  } else {
    arrive(&job, nullptr);
  }
}

void OptimizerPipeline::Graph::update(Job& job) {
  job.pending.exchange(1);
  Arrival arrival(job);
  if (failed_) {
    arrival();
    return;
  }
  place(job);
  Queue& queue = job.spans.tier == Tier::device ? parts_.device_update : parts_.host_update;
  try {
    queue.run([this] { note_wait(); });
    update_fn_(job.spans, queue);
    queue.run([this] { idle_since_ns_.store(now_ns()); });
    queue.run(std::move(arrival));
  } catch (...) {
    fail(std::current_exception());
  }
}

void OptimizerPipeline::Graph::write(Job& job) {
  const SubGroup& group = *job.group;
  const bool to_disk = group.nvme_kinds() > 0 && !failed_;
  const bool to_device = group.param_tier != group.update_tier() && !failed_;
  job.pending.exchange(1 + (to_disk ? 1 : 0) + (to_device ? 1 : 0));
  if (to_disk) transfer(job, io::Op::write, parts_.state.store()->next(group.index));
  if (to_device) {
    const auto bytes = static_cast<size_t>(group.grains.grains() *
                                           parts_.state.spec().grain_bytes(StateKind::param));
    parts_.copy_in.copy(parts_.state.resident(StateKind::param, group.grains.begin),
                        job.spans.param, bytes, CopyDirection::host_to_device,
                        {StateKind::param, group.index, "updated parameters"});
    parts_.copy_in.run(Arrival(job));
  }
  arrive(&job, nullptr);
}

void OptimizerPipeline::Graph::finish(Job& job) {
  if (job.staging != nullptr) {
    {
      const std::lock_guard lock(mutex_);
      free_staging_.push_back(std::exchange(job.staging, nullptr));
    }
    limiter_.decrementer().try_put(flow::continue_msg());
  }
  graph_.release_wait();
}

void OptimizerPipeline::Graph::transfer(Job& job, io::Op op, Extent extent) {
  IoCommand command;
  command.op = op;
  command.file = &parts_.state.store()->file();
  command.offset = extent.offset;
  command.data = job.staging;
  command.bytes = extent.bytes;
  command.tag = {StateKind::master, job.group->index,
                 op == io::Op::read ? "read state" : "write state"};
  parts_.pump->submit(command, {&Graph::arrive, &job});
}

void OptimizerPipeline::Graph::arrive(void* context, std::exception_ptr failure) noexcept {
  Job* job = static_cast<Job*>(context);
  if (failure != nullptr) job->graph->fail(std::move(failure));
  // Release what this part did, acquire what the others did.
  if (job->pending.fetch_sub(1, std::memory_order_acq_rel) == 1) job->gateway->try_put(job);
}

OptimizerPipeline::Graph::Arrival::~Arrival() {
  if (job_ == nullptr) return;
  arrive(job_, reached_ ? nullptr
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
  TrafficRecord record;
  record.activity = Activity::wait;
  record.tag = {StateKind::master, -1, kWaitLabel};
  record.lane = "optimizer";
  record.begin_ns = since;
  record.end_ns = now_ns();
  if (since != 0) parts_.traffic.record(record);
}

OptimizerPipeline::OptimizerPipeline(const Parts& parts, const StagingLayout& layout,
                                     TierManager& tiers, UpdateFn update, bool overlap)
    : graph_(std::make_unique<Graph>(parts, layout, tiers, std::move(update), overlap)) {}

OptimizerPipeline::~OptimizerPipeline() = default;

void OptimizerPipeline::submit(int32_t sub_group) { graph_->submit(sub_group); }
void OptimizerPipeline::drain() { graph_->drain(); }

}  // namespace strata::offload
