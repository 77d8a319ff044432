#include "offload/optimizer_pipeline.h"

#include <oneapi/tbb/flow_graph.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/device/compute_spans.h"
#include "offload/graph_thread.h"
#include "offload/handover.h"
#include "strata/clock.h"
#include "strata/error.h"

namespace strata::offload {
namespace {

namespace flow = oneapi::tbb::flow;

}  // namespace

bool can_speculate(const TrainingStateSpec& spec, const SubGroup& group) {
  return spec.codec(StateKind::master) == Codec::fp32 &&
         std::all_of(group.state_tier.begin(), group.state_tier.end(),
                     [](Tier tier) { return tier == Tier::nvme; });
}

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
  LinkBytes promised() const;

 private:
  struct Job;
  using Node = flow::async_node<Job*, Job*>;
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
  };

  struct Job {
    // Constant after construction.
    Graph* graph = nullptr;
    const SubGroup* group = nullptr;
    bool staged = false;
    bool on_disk = false;
    bool loads_param = false;

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
  Extent source(const Job& job) const;
  void update_on_device(Job& job, const Event& gradient);
  void place(Job& job);
  void enqueue_update(Job& job, const Submission& submission);
  std::byte* staged_param(const Job& job) const {
    return job.staging + staging_.layout().state_bytes;
  }
  void copy_parameters(Job& job, Queue& queue, CopyDirection direction, Arrival::Arrive then);
  void parameters_are_in_place(Job& job, const Event& event);
  void transfer(Job& job, io::Op op, Extent extent, Arrival::Arrive then);
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
  LinkBytes promised_ = {};
  std::exception_ptr failure_;

  GraphThread thread_;
  Node read_;
  Node update_;
  Node write_;
};

OptimizerPipeline::Graph::Graph(const Parts& parts, const StagingLayout& layout, TierManager& tiers,
                                UpdateFn update, bool overlap)
    : parts_(parts),
      update_fn_(std::move(update)),
      overlap_(overlap),
      host_updates_(parts.host_update, parts.traffic),
      device_updates_(parts.device_update, parts.traffic),
      jobs_(parts.state.spec().sub_groups.size()),
      staging_(layout, tiers),
      read_(thread_.graph(), flow::serial, run<&Graph::read>()),
      update_(thread_.graph(), flow::serial, run<&Graph::update>()),
      write_(thread_.graph(), flow::serial, run<&Graph::write>()) {
  const TrainingStateSpec& spec = parts_.state.spec();
  for (const SubGroup& group : spec.sub_groups) {
    Job& job = jobs_[static_cast<size_t>(group.index)];
    job.graph = this;
    job.group = &group;
    job.staged = needs_staging(spec, group);
    job.on_disk = spec.on_disk(group);
    job.loads_param = spec.loads_param(group);
    job.where = job.staged ? Where::away : Where::there;
  }
  flow::make_edge(flow::output_port<0>(read_), update_);
  flow::make_edge(flow::output_port<0>(update_), write_);
}

// Whoever passes a job on may still be inside the graph when the job is done already: the graph
// goes only after queues and pump are through with it.
OptimizerPipeline::Graph::~Graph() {
  {
    std::unique_lock lock(mutex_);
    drop_reads();
    changed_.wait(lock, [this] { return at_rest(); });
  }
  for (Queue* queue :
       {&parts_.host_update, &parts_.device_update, &parts_.param_in, &parts_.param_out}) {
    queue->finish();
  }
  if (parts_.pump != nullptr) parts_.pump->quiesce();
  thread_.stop();
}

void OptimizerPipeline::Graph::read_ahead(std::span<const int32_t> order) {
  if (!overlap_) return;
  const std::lock_guard lock(mutex_);
  ahead_ = order;
  next_ahead_ = 0;
  for (const int32_t sub_group : order) {
    Job& job = jobs_[static_cast<size_t>(sub_group)];
    job.expected = job.on_disk;
  }
  start_reads();
}

void OptimizerPipeline::Graph::submit(int32_t sub_group, Purpose purpose, const Event& gradient) {
  Job& job = jobs_[static_cast<size_t>(sub_group)];
  if (job.group->update_tier() == Tier::device) {
    update_on_device(job, gradient);
  } else {
    const std::lock_guard lock(mutex_);
    job.submitted = true;
    job.submission = {purpose, gradient, now_ns()};
    job.expected = false;
    ++job.passes;
    ++passes_;
    promised_ = promised_ + traffic(job, purpose);
    if (job.where == Where::there) {
      offer(job);
    } else if (job.where != Where::reading && job.where != Where::passing && job.staged) {
      if (!std::exchange(job.due, true)) due_.push(job);
      start_reads();
    }
  }
  if (!overlap_) settle();
}

bool OptimizerPipeline::Graph::recall(int32_t sub_group) {
  Job& job = jobs_[static_cast<size_t>(sub_group)];
  const std::lock_guard lock(mutex_);
  if (!job.submitted) return false;
  job.submitted = false;
  job.expected = true;
  --job.passes;
  --passes_;
  promised_ = promised_ - traffic(job, job.submission.purpose);
  return true;
}

bool OptimizerPipeline::Graph::has_parameters(int32_t sub_group) const {
  const std::lock_guard lock(mutex_);
  return jobs_[static_cast<size_t>(sub_group)].passes == 0;
}

Event OptimizerPipeline::Graph::parameters(int32_t sub_group) {
  const Job& job = jobs_[static_cast<size_t>(sub_group)];
  std::unique_lock lock(mutex_);
  wait_until(lock, [&] { return job.passes == 0; });
  if (failure_ == nullptr) return job.params;
  lock.unlock();
  rethrow_failure();
  return {};
}

void OptimizerPipeline::Graph::drain() {
  {
    std::unique_lock lock(mutex_);
    wait_until(lock, [this] { return passes_ == 0; });
  }
  rethrow_failure();
  device_done_.wait();
  parts_.param_in.synchronize();
}

void OptimizerPipeline::Graph::settle() {
  {
    std::unique_lock lock(mutex_);
    drop_reads();
    wait_until(lock, [this] { return at_rest(); });
  }
  rethrow_failure();
  device_done_.wait();
  parts_.param_in.synchronize();
}

LinkBytes OptimizerPipeline::Graph::promised() const {
  const std::lock_guard lock(mutex_);
  return promised_;
}

void OptimizerPipeline::Graph::rethrow_failure() {
  std::exception_ptr failure;
  {
    const std::lock_guard lock(mutex_);
    failure = failure_;
  }
  if (failure == nullptr) return;
  // A queue that failed knows the cause better than the task it skipped.
  parts_.host_update.synchronize();
  parts_.param_in.synchronize();
  parts_.param_out.synchronize();
  std::rethrow_exception(failure);
}

// Reads what is due, then ahead, as far as there are buffers.
void OptimizerPipeline::Graph::start_reads() {
  while (!staging_.empty()) {
    Job* job = next_to_read();
    if (job == nullptr) return;
    move(*job, Where::reading);
    job->staging = staging_.take();
    job->spans.purpose = job->submitted ? job->submission.purpose : Purpose::update;
    hand_over(job);
    read_.try_put(job);
  }
}

// Strictly in order: one that is still on its way back from the last pass holds up the others.
OptimizerPipeline::Graph::Job* OptimizerPipeline::Graph::next_to_read() {
  if (Job* job = first_due()) {
    if (job->where != Where::away) return nullptr;
    pop_due();
    return job;
  }
  for (; next_ahead_ < ahead_.size(); ++next_ahead_) {
    Job& job = jobs_[static_cast<size_t>(ahead_[next_ahead_])];
    if (!job.expected || job.where == Where::reading || job.where == Where::there) continue;
    return job.where == Where::away ? &job : nullptr;
  }
  return nullptr;
}

OptimizerPipeline::Graph::Job* OptimizerPipeline::Graph::first_due() {
  while (due_.front() != nullptr && !due_.front()->submitted) pop_due();  // recalled
  return due_.front();
}

void OptimizerPipeline::Graph::pop_due() {
  due_.front()->due = false;
  due_.pop();
}

// The job's state is there: for the update, or until somebody asks for it, or for nobody.
void OptimizerPipeline::Graph::offer(Job& job) {
  if (job.submitted) {
    move(job, Where::passing);
    pass_on(job, read_);
  } else if (job.expected || !job.staged) {
    move(job, Where::there);
  } else {
    const auto read = static_cast<size_t>(Activity::nvme_read);
    promised_[read] += traffic(job, Purpose::update)[read];
    put_back(job);
  }
}

// The job's pass is over, or what was read is not wanted.
void OptimizerPipeline::Graph::put_back(Job& job) {
  if (!job.staged) {
    offer(job);
    return;
  }
  staging_.give_back(std::exchange(job.staging, nullptr));
  move(job, Where::away);
  start_reads();
}

void OptimizerPipeline::Graph::move(Job& job, Where where) {
  const auto rests = [](Where place) { return place == Where::away || place == Where::there; };
  if (rests(job.where) && !rests(where)) ++under_way_;
  if (!rests(job.where) && rests(where)) --under_way_;
  job.where = where;
  changed_.notify_all();
}

// Gives back the buffers of what was read and not submitted; what is being read follows when it is
// there.
void OptimizerPipeline::Graph::drop_reads() {
  ahead_ = {};
  next_ahead_ = 0;
  for (Job& job : jobs_) {
    const bool held = job.expected && job.where == Where::there;
    job.expected = false;
    if (held) offer(job);
  }
}

void OptimizerPipeline::Graph::fail(std::exception_ptr failure) noexcept {
  if (failure_ == nullptr) failure_ = std::move(failure);
  changed_.notify_all();
}

void OptimizerPipeline::Graph::update_on_device(Job& job, const Event& gradient) {
  Queue& queue = parts_.device_update;
  queue.wait(gradient, {StateKind::grad, job.group->index, "update waits for gradients"});
  place(job);
  device_updates_.begin();
  update_fn_(job.spans, queue);
  device_updates_.end({StateKind::master, job.group->index, "update"});
  device_done_ = queue.record();
  const std::lock_guard lock(mutex_);
  job.params = device_done_;
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
                    : staged_param(job);
}

LinkBytes OptimizerPipeline::Graph::traffic(const Job& job, Purpose purpose) const {
  const TrainingStateSpec& spec = parts_.state.spec();
  return purpose == Purpose::restoration ? restoration_traffic(spec, *job.group)
                                         : update_traffic(spec, *job.group);
}

// The part of the job's slot that is read for its purpose: the master weights come first there.
Extent OptimizerPipeline::Graph::source(const Job& job) const {
  Extent extent = parts_.state.store()->current(job.group->index);
  if (job.spans.purpose == Purpose::restoration) {
    extent.bytes = traffic(job, Purpose::restoration)[static_cast<size_t>(Activity::nvme_read)];
  }
  return extent;
}

void OptimizerPipeline::Graph::read(Job& job) {
  bool from_disk = job.on_disk;
  bool from_device = job.loads_param;
  {
    const std::lock_guard lock(mutex_);
    from_disk = from_disk && failure_ == nullptr;
    from_device = from_device && failure_ == nullptr;
    job.pending = 1 + (from_disk ? 1 : 0) + (from_device ? 1 : 0);
  }
  if (from_disk) {
    transfer(job, io::Op::read, source(job), &Graph::arrive_read);
  }
  if (from_device) {
    copy_parameters(job, parts_.param_out, CopyDirection::device_to_host, &Graph::arrive_read);
  }
  arrive_read(&job, nullptr);
}

// From here on a submission cannot be recalled. After a failure the job only passes.
void OptimizerPipeline::Graph::update(Job& job) {
  Submission submission;
  bool works;
  {
    const std::lock_guard lock(mutex_);
    if (!job.submitted) {  // recalled on its way here
      offer(job);
      return;
    }
    move(job, Where::updating);
    job.submitted = false;
    job.pending = 1;
    submission = job.submission;
    works = failure_ == nullptr;
  }
  if (works) {
    enqueue_update(job, submission);
  } else {
    arrive_updated(&job, nullptr);
  }
}

void OptimizerPipeline::Graph::enqueue_update(Job& job, const Submission& submission) {
  place(job);
  job.spans.purpose = submission.purpose;
  const int32_t sub_group = job.group->index;
  Queue& queue = parts_.host_update;
  Arrival arrival(job, &Graph::arrive_updated);  // reports whatever happens below
  try {
    queue.wait(submission.gradient, {StateKind::grad, sub_group, "update waits for gradients"});
    if (job.on_disk) {
      queue.run([this, sub_group, since_ns = submission.since_ns, there_ns = job.there_ns] {
        note_wait(sub_group, since_ns, there_ns);
      });
    }
    host_updates_.begin();
    update_fn_(job.spans, queue);
    host_updates_.end({StateKind::master, sub_group, "update"});
    queue.run(std::move(arrival));
  } catch (...) {
    const std::lock_guard lock(mutex_);
    fail(std::current_exception());
  }
}

void OptimizerPipeline::Graph::write(Job& job) {
  const SubGroup& group = *job.group;
  bool updated;
  bool to_disk = job.on_disk && job.spans.purpose != Purpose::restoration;
  bool to_device = group.param_tier != group.update_tier();
  {
    const std::lock_guard lock(mutex_);
    updated = failure_ == nullptr;
    to_disk = to_disk && updated;
    to_device = to_device && updated;
    move(job, Where::writing);
    job.pending = 1 + (to_disk ? 1 : 0) + (to_device ? 1 : 0);
  }
  if (to_device) {
    copy_parameters(job, parts_.param_in, CopyDirection::host_to_device, &Graph::arrive_written);
  }
  parameters_are_in_place(job, to_device ? parts_.param_in.record() : Event());
  if (to_disk) {
    transfer(job, io::Op::write, parts_.state.store()->next(group.index), &Graph::arrive_written);
  }
  arrive_written(&job, nullptr);
}

// Between the device and the job's staging buffer.
void OptimizerPipeline::Graph::copy_parameters(Job& job, Queue& queue, CopyDirection direction,
                                               Arrival::Arrive then) {
  const SubGroup& group = *job.group;
  const auto bytes = static_cast<size_t>(group.grains.grains() *
                                         parts_.state.spec().grain_bytes(StateKind::param));
  std::byte* const on_device = parts_.state.resident(StateKind::param, group.grains.begin);
  std::byte* const staged = staged_param(job);
  Arrival arrival(job, then);
  try {
    if (direction == CopyDirection::host_to_device) {
      queue.copy(on_device, staged, bytes, direction,
                 {StateKind::param, group.index, "updated parameters", true});
    } else {
      queue.copy(staged, on_device, bytes, direction,
                 {StateKind::param, group.index, "parameters to update", true});
    }
    queue.run(std::move(arrival));
  } catch (...) {
    const std::lock_guard lock(mutex_);
    fail(std::current_exception());
  }
}

void OptimizerPipeline::Graph::parameters_are_in_place(Job& job, const Event& event) {
  const std::lock_guard lock(mutex_);
  job.params = event;
  --job.passes;
  --passes_;
  changed_.notify_all();
}

void OptimizerPipeline::Graph::transfer(Job& job, io::Op op, Extent extent, Arrival::Arrive then) {
  IoCommand command;
  command.op = op;
  command.file = &parts_.state.store()->file();
  command.offset = extent.offset;
  command.data = job.staging;
  command.bytes = extent.bytes;
  command.tag = {StateKind::master, job.group->index,
                 op == io::Op::read ? "read state" : "write state", true};
  parts_.pump->submit(command, {then, &job});
}

void OptimizerPipeline::Graph::arrive_read(void* context, std::exception_ptr failure) noexcept {
  Job& job = *static_cast<Job*>(context);
  Graph& graph = *job.graph;
  const std::lock_guard lock(graph.mutex_);
  if (!graph.last_arrival(job, std::move(failure))) return;
  job.there_ns = now_ns();
  graph.offer(job);
}

void OptimizerPipeline::Graph::arrive_updated(void* context, std::exception_ptr failure) noexcept {
  Job& job = *static_cast<Job*>(context);
  Graph& graph = *job.graph;
  const std::lock_guard lock(graph.mutex_);
  if (graph.last_arrival(job, std::move(failure))) graph.pass_on(job, graph.update_);
}

void OptimizerPipeline::Graph::arrive_written(void* context, std::exception_ptr failure) noexcept {
  Job& job = *static_cast<Job*>(context);
  Graph& graph = *job.graph;
  const std::lock_guard lock(graph.mutex_);
  if (graph.last_arrival(job, std::move(failure))) graph.put_back(job);
}

bool OptimizerPipeline::Graph::last_arrival(Job& job, std::exception_ptr failure) noexcept {
  if (failure != nullptr) fail(std::move(failure));
  return --job.pending == 0;
}

void OptimizerPipeline::Graph::pass_on(Job& job, Node& from) noexcept {
  hand_over(&job);
  from.gateway().try_put(&job);
}

OptimizerPipeline::Graph::Arrival::~Arrival() {
  if (job_ == nullptr) return;
  arrive_(job_, reached_
                    ? nullptr
                    : std::make_exception_ptr(DeviceError("a queue failed during the update")));
}

// The queue stood still for state that came after the submission and the update before.
void OptimizerPipeline::Graph::note_wait(int32_t sub_group, int64_t since_ns,
                                         int64_t there_ns) noexcept {
  const int64_t begin_ns = std::max(since_ns, host_updates_.last_end_ns());
  if (there_ns <= begin_ns) return;
  parts_.traffic.record({Activity::wait,
                         {StateKind::master, sub_group, kWaitLabel},
                         "optimizer",
                         /*bytes=*/0,
                         begin_ns,
                         there_ns});
}

OptimizerPipeline::OptimizerPipeline(const Parts& parts, const StagingLayout& layout,
                                     TierManager& tiers, UpdateFn update, bool overlap)
    : graph_(std::make_unique<Graph>(parts, layout, tiers, std::move(update), overlap)) {}

OptimizerPipeline::~OptimizerPipeline() = default;

void OptimizerPipeline::read_ahead(std::span<const int32_t> order) { graph_->read_ahead(order); }
void OptimizerPipeline::submit(int32_t sub_group, Purpose purpose, const Event& gradient) {
  graph_->submit(sub_group, purpose, gradient);
}
bool OptimizerPipeline::recall(int32_t sub_group) { return graph_->recall(sub_group); }
bool OptimizerPipeline::has_parameters(int32_t sub_group) const {
  return graph_->has_parameters(sub_group);
}
Event OptimizerPipeline::parameters(int32_t sub_group) { return graph_->parameters(sub_group); }
void OptimizerPipeline::drain() { graph_->drain(); }
void OptimizerPipeline::settle() { graph_->settle(); }
LinkBytes OptimizerPipeline::promised() const { return graph_->promised(); }

}  // namespace strata::offload
