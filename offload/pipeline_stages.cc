// The graph's nodes, and what follows when the work they started is done.
#include "offload/pipeline_graph.h"

#include <algorithm>

#include "strata/clock.h"
#include "strata/error.h"
#include "strata/wait_scope.h"

namespace strata::offload {

void OptimizerPipeline::Graph::update_on_device(Job& job, const Event& gradient) {
  Queue& queue = parts_.device_update;
  queue.wait(gradient, {StateKind::grad, job.group->index, "update waits for gradients"});
  place(job);
  device_updates_.begin({StateKind::master, job.group->index, "update"});
  update_fn_(job.spans, queue);
  device_updates_.end();
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
  for (size_t i = 0; i < kOptimizerKindCount; ++i) {
    if (group.state_tier[i] == Tier::nvme) {
      spans.state[i] = job.staging + spec.extent_offset(group, kOptimizerKinds[i]);
    } else {
      spans.state[i] = parts_.state.resident(kOptimizerKinds[i], group.grains.begin);
    }
  }
  spans.grad = group.grad_tier == Tier::nvme
                   ? staged_grad(job)
                   : parts_.state.resident(StateKind::grad, group.grains.begin);
  spans.param = group.param_tier == group.update_tier()
                    ? parts_.state.resident(StateKind::param, group.grains.begin)
                    : staged_param(job);
}

LinkBytes OptimizerPipeline::Graph::traffic(const Job& job, Purpose purpose) const {
  const TrainingStateSpec& spec = parts_.state.spec();
  return purpose == Purpose::restoration ? restoration_traffic(spec, *job.group)
                                         : update_traffic(spec, *job.group);
}

// What lies in the job's slot, in its staging buffer. To restore from, the master weights suffice:
// they come first there.
std::span<std::byte> OptimizerPipeline::Graph::state_of(const Job& job, bool restores) const {
  const TrainingStateSpec& spec = parts_.state.spec();
  return {job.staging, restores ? spec.padded_bytes(StateKind::master, job.group->grains.grains())
                                : spec.extent_bytes(*job.group)};
}

// Between the two.
IoCommand OptimizerPipeline::Graph::state_command(const Job& job, io::Op op) const {
  const SlotStore& store = *parts_.state.store();
  const int32_t sub_group = job.group->index;
  const Extent extent =
      store.layout().extent(sub_group, op == io::Op::read ? job.from_slot : job.to_slot);
  IoCommand command;
  const auto state = state_of(job, job.spans.purpose == Purpose::restoration);
  command.file = &store.file();
  command.offset = extent.offset;
  command.data = state.data();
  command.bytes = state.size();
  command.op = op;
  command.tag.kind = StateKind::master;
  return command;
}

// A stage waits for the node itself and for each thing it starts. False after a failure: the job
// only passes.
bool OptimizerPipeline::Graph::enter(Job& job, Where where) {
  const std::lock_guard lock(mutex_);
  move(job, where);
  job.pending = 1;
  return failure_ == nullptr;
}

void OptimizerPipeline::Graph::read(Job& job) {
  const SubGroup& group = *job.group;
  if (enter(job, Where::reading)) {
    if (job.on_disk) {
      transfer(job, state_command(job, io::Op::read), &Graph::arrive_read);
    }
    if (group.grad_tier == Tier::nvme && job.spans.purpose != Purpose::restoration) {
      IoCommand command =
          parts_.state.shard_command(StateKind::grad, group.grains, staged_grad(job));
      command.op = io::Op::read;
      transfer(job, command, &Graph::arrive_read);
    }
    if (job.loads_param) load_parameters(job);
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
  job.to_slot = submission.to_slot;
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
    const bool restores = submission.purpose == Purpose::restoration;
    if (job.on_disk) {
      host_updates_.begin({StateKind::master, sub_group, "check"});
      queue.run([this, sub_group, slot = job.from_slot, state = state_of(job, restores)] {
        parts_.state.store()->check(sub_group, slot, 0, state);
      });
      host_updates_.end();
    }
    host_updates_.begin({StateKind::master, sub_group, "update"});
    update_fn_(job.spans, queue);
    host_updates_.end();
    if (job.on_disk && !restores) {
      host_updates_.begin({StateKind::master, sub_group, "seal"});
      queue.run([this, sub_group, slot = job.to_slot, state = state_of(job, restores)] {
        parts_.state.store()->seal(sub_group, slot, 0, state);
      });
      host_updates_.end();
    }
    queue.run(std::move(arrival));
  } catch (...) {
    const std::lock_guard lock(mutex_);
    fail(std::current_exception());
  }
}

void OptimizerPipeline::Graph::write(Job& job) {
  const SubGroup& group = *job.group;
  const bool works = enter(job, Where::writing);
  Event params;
  if (works && group.param_tier == Tier::device) {
    copy_parameters(job, parts_.param_in, CopyDirection::host_to_device, &Graph::arrive_written);
    params = parts_.param_in.record();
  }
  if (group.param_tier != Tier::nvme) {
    const std::lock_guard lock(mutex_);
    end_pass(job, params);
  }
  if (works && job.on_disk && job.spans.purpose != Purpose::restoration) {
    transfer(job, state_command(job, io::Op::write), &Graph::arrive_written);
  }
  if (works && group.param_tier == Tier::nvme) {
    IoCommand command = parts_.state.shard_command(StateKind::param, group.grains, job.spans.param);
    command.op = io::Op::write;
    transfer(job, command, &Graph::arrive_written);
  }
  arrive_written(&job, nullptr);
}

// The old ones, for an update that reads them.
void OptimizerPipeline::Graph::load_parameters(Job& job) {
  if (job.group->param_tier == Tier::nvme) {
    IoCommand command =
        parts_.state.shard_command(StateKind::param, job.group->grains, staged_param(job));
    command.op = io::Op::read;
    transfer(job, command, &Graph::arrive_read);
  } else {
    copy_parameters(job, parts_.param_out, CopyDirection::device_to_host, &Graph::arrive_read);
  }
}

// Between the device and the job's staging buffer.
void OptimizerPipeline::Graph::copy_parameters(Job& job, Queue& queue, CopyDirection direction,
                                               Arrival::Arrive then) {
  const SubGroup& group = *job.group;
  const auto bytes = static_cast<size_t>(group.grains.grains() *
                                         parts_.state.spec().grain_bytes(StateKind::param));
  std::byte* const on_device = parts_.state.resident(StateKind::param, group.grains.begin);
  {
    const std::lock_guard lock(mutex_);
    ++job.pending;
  }
  Arrival arrival(job, then);
  try {
    if (direction == CopyDirection::host_to_device) {
      queue.copy(on_device, staged_param(job), bytes, direction,
                 {StateKind::param, group.index, "updated parameters", Account::update});
    } else {
      queue.copy(staged_param(job), on_device, bytes, direction,
                 {StateKind::param, group.index, "parameters to update", Account::update});
    }
    queue.run(std::move(arrival));
  } catch (...) {
    const std::lock_guard lock(mutex_);
    fail(std::current_exception());
  }
}

void OptimizerPipeline::Graph::transfer(Job& job, IoCommand command, Arrival::Arrive then) {
  {
    const std::lock_guard lock(mutex_);
    ++job.pending;
  }
  command.tag.index = job.group->index;
  command.tag.label = command.op == io::Op::read ? "read for update" : "write after update";
  command.tag.account = Account::update;
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
  if (!graph.last_arrival(job, std::move(failure))) return;
  if (writes(job, job.spans.purpose)) --graph.to_write_;
  if (job.group->param_tier == Tier::nvme) graph.end_pass(job, {});
  graph.put_back(job);
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
  record_wait(parts_.traffic, {StateKind::master, sub_group, kWaitLabel}, "optimizer", begin_ns,
              there_ns);
}

}  // namespace strata::offload
