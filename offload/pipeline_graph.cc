// What the driver asks for, and where each job is.
#include "offload/pipeline_graph.h"

#include <algorithm>

#include "strata/clock.h"

namespace strata::offload {

OptimizerPipeline::Graph::Graph(const Parts& parts, const StagingLayout& layout, TierManager& tiers,
                                UpdateFn update, bool overlap)
    : parts_(parts),
      update_fn_(std::move(update)),
      overlap_(overlap),
      host_updates_(parts.host_update, parts.traffic),
      device_updates_(parts.device_update, parts.traffic),
      jobs_(parts.state.spec().sub_groups.size()),
      staging_(layout, tiers),
      read_(thread_.graph(), oneapi::tbb::flow::serial, run<&Graph::read>()),
      update_(thread_.graph(), oneapi::tbb::flow::serial, run<&Graph::update>()),
      write_(thread_.graph(), oneapi::tbb::flow::serial, run<&Graph::write>()) {
  const TrainingStateSpec& spec = parts_.state.spec();
  for (const SubGroup& group : spec.sub_groups) {
    Job& job = jobs_[static_cast<size_t>(group.index)];
    job.graph = this;
    job.group = &group;
    job.staged = needs_staging(parts_.state.spec(), group);
    job.on_disk = parts_.state.spec().on_disk(group);
    job.loads_param = parts_.state.spec().loads_param(group);
    job.where = job.staged ? Where::away : Where::there;
  }
  oneapi::tbb::flow::make_edge(oneapi::tbb::flow::output_port<0>(read_), update_);
  oneapi::tbb::flow::make_edge(oneapi::tbb::flow::output_port<0>(update_), write_);
}

OptimizerPipeline::Graph::~Graph() { finish(); }

// Whoever passes a job on may still be inside the graph when the job is done already: the graph
// goes only after queues and pump are through with it.
void OptimizerPipeline::Graph::finish() noexcept {
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
    job.expected = job.on_disk && job.group->grad_tier != Tier::nvme;
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
    if (job.on_disk) {
      job.submission.from_slot = parts_.state.store()->current_slot();
      job.submission.to_slot = parts_.state.store()->next_slot();
    }
    if (writes(job, purpose)) ++to_write_;
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
  if (writes(job, job.submission.purpose)) --to_write_;
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

void OptimizerPipeline::Graph::await_writes() {
  std::unique_lock lock(mutex_);
  wait_until(lock, [this] { return to_write_ == 0; });
  if (failure_ != nullptr) std::rethrow_exception(failure_);
}

void OptimizerPipeline::Graph::abandon(std::exception_ptr failure) {
  const std::lock_guard lock(mutex_);
  fail(std::move(failure));
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
    if (job->on_disk) {
      job->from_slot =
          job->submitted ? job->submission.from_slot : parts_.state.store()->current_slot();
    }
    hand_over(job);
    read_.try_put(job);
  }
}

// Strictly in order: one that is still under way in the last pass holds up the others.
OptimizerPipeline::Graph::Job* OptimizerPipeline::Graph::next_to_read() {
  if (Job* job = first_due()) {
    if (job->where != Where::away) return nullptr;
    pop_due();
    return job;
  }
  for (; next_ahead_ < ahead_.size(); ++next_ahead_) {
    Job& job = jobs_[static_cast<size_t>(ahead_[next_ahead_])];
    const bool is_ahead =
        job.where == Where::there || (job.where == Where::reading && !job.submitted);
    if (!job.expected || is_ahead) continue;
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
    promised_ = promised_ + read_traffic(parts_.state.spec(), *job.group);
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

// The pass's parameters are in place at `params`.
void OptimizerPipeline::Graph::end_pass(Job& job, const Event& params) {
  job.params = params;
  --job.passes;
  --passes_;
  changed_.notify_all();
}

void OptimizerPipeline::Graph::fail(std::exception_ptr failure) noexcept {
  if (failure_ == nullptr) failure_ = std::move(failure);
  changed_.notify_all();
}

}  // namespace strata::offload
