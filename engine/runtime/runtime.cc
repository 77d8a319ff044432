#include "engine/runtime/runtime.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/plan/batch_views.h"
#include "engine/runtime/cpu_binding.h"
#include "engine/runtime/fingerprint.h"
#include "strata/clock.h"
#include "strata/error.h"
#include "strata/wait_scope.h"

namespace strata::engine {
namespace {

constexpr size_t kTraceEvents = 1 << 20;
constexpr const char* kStart = "the engine's start";
constexpr const char* kEnd = "the engine's end";

Model as_run(Model model, const Config& config) {
  if (config.tiles == 1) return model;
  if (!model.tiled) {
    throw ConfigError(
        "strata.tiles is given and this model has no tiles (strata::Model::tiled): remove it");
  }
  return model.tiled(config.tiles);
}

// A caller that computes holds parameters until it calls step(): they do not change before.
Config as_run(Config config, const Engine::Options& options) {
  if (!options.own_compute) return config;
  if (options.held_units < 1) {
    throw ConfigError("Options::held_units is below 1: the caller holds one unit at least");
  }
  if (config.speculate == SpeculateChoice::always) {
    throw ConfigError(
        "the caller computes, and parameters change in step() alone: strata.speculate cannot be "
        "\"always\"");
  }
  config.speculate = SpeculateChoice::never;
  return config;
}

std::string recovery_line(const PlanSummary& plan) {
  if (plan.recovery == "step")
    return "recovery: step (a killed run goes on from the step it was in)";
  const std::string takes = plan.step_recovery_takes.empty()
                                ? ""
                                : fmt::format("; \"step\" takes {}", plan.step_recovery_takes);
  return plan.recovery == "checkpoint"
             ? fmt::format("recovery: checkpoint (a killed run goes on from its last one{})", takes)
             : "recovery: none (a killed run starts from the beginning: it has no directory)";
}

}  // namespace

Runtime::Runtime(Model model, const Config& config, const World& world,
                 const Engine::Options& options, const Disturbance& disturbance)
    : model_(as_run(std::move(model), config)),
      config_(as_run(config, options)),
      world_(world),
      shape_(options.own_compute
                 ? BatchShape{1, 1}
                 : BatchShape{options.micro_batch.batch > 0 ? options.micro_batch.batch
                                                            : config.micro_batch,
                              options.micro_batch.sequence}),
      data_hash_(options.data_hash),
      held_units_(options.own_compute ? options.held_units : 0),
      stop_(options.stop),
      run_directory_(options.run_directory),
      resume_(options.resume),
      log_(options.log != nullptr ? *options.log : silent_),
      recorder_(options.keep_trace ? kTraceEvents : 0),
      loss_scaler_(config),
      of_ranks_(kStepDoubles * static_cast<size_t>(world.size)) {
  const int compute_threads = thread_count(config_.compute_threads, world_);
  const int optimizer_threads = thread_count(config_.optimizer_threads, world_);
  const CpuBinding binding = cpu_binding(config_, world_, this_machine(), optimizer_threads);
  binding_line_ = binding.description;
  host_options_ = host_options(config_, disturbance, binding.memory_nodes);
  const HostDeviceOptions& host = host_options_;
  device_ = make_device(config_, world_, host, recorder_);
  compute_ = device_->create_queue({"compute", compute_threads});
  copy_in_ = device_->create_queue({"copy in", 1});
  copy_out_ = device_->create_queue({"copy out", 1});
  comm_queue_ = device_->create_queue({"comm", 1});
  param_in_ = device_->create_queue({"parameters in", 1});
  param_out_ = device_->create_queue({"parameters out", 1});
  activations_in_ = device_->create_queue({"activations in", 1});
  activations_out_ = device_->create_queue({"activations out", 1});
  landing_ = make_host_queue({"landing", optimizer_threads}, host, recorder_);
  host_update_ =
      make_host_queue({"host update", optimizer_threads, binding.places}, host, recorder_);
  commit_ = make_host_queue({"commit", 1}, host, recorder_);
  checkpoint_queue_ = device_->create_queue({"checkpoint", 1});
  passes_ = std::make_unique<ComputeSpans>(*compute_, recorder_);
  const bool on_gpu = device_->kind() == DeviceKind::cuda;
  layer_ops_ = on_gpu ? ops::make_cuda_layer_ops(*compute_)
                      : ops::make_host_layer_ops(*compute_, compute_threads);
  if (disturbance.wrap_ops) layer_ops_ = disturbance.wrap_ops(std::move(layer_ops_));
  device_state_ops_ = on_gpu ? ops::make_cuda_state_ops() : ops::make_host_state_ops();
  host_state_ops_ = ops::make_host_state_ops();
  comm_ = make_communicator(world_, *comm_queue_, *device_state_ops_,
                            {.timeout_s = config_.comm_timeout_s, .reduction = config_.reduction},
                            recorder_);
  start_watchdog(options);
  try {
    together(kStart, [&] { build(disturbance, options.initial_values); });
  } catch (...) {
    const Watchdog::Call call(watchdog_.get(), kStart);
    come_to_rest();
    throw;
  }
}

void Runtime::start_watchdog(const Engine::Options& options) {
  if (config_.watchdog_s == 0) return;
  watchdog_ = std::make_unique<Watchdog>(config_.watchdog_s, log_, options.stuck);
  for_working_queues([this](Queue& queue) { watchdog_->watch(queue, Watchdog::Role::works); });
  watchdog_->watch(*commit_, Watchdog::Role::waits);
  watchdog_->watch(*comm_queue_, Watchdog::Role::trades);
  watchdog_->watch(comm_->waiting_queue(), Watchdog::Role::trades);
  if (world_.size == 1) return;
  watchdog_->on_end(
      [this](const std::exception_ptr&, std::string_view reason) { comm_->abort(reason); });
}

void Runtime::build(const Disturbance& disturbance, const ParameterReader& initial_values) {
  files_ = std::make_unique<RunFiles>(
      RunFiles::Wanted{run_directory_, resume_, initial_values != nullptr}, config_, world_, *comm_,
      log_);
  MachineMemory machine = machine_memory(*device_, config_, world_.local_size);
  machine.disk_bytes += files_->state_bytes();
  plan_ = std::make_unique<Plan>(make_plan({.model = model_,
                                            .config = config_,
                                            .world = world_,
                                            .micro_batch = shape_,
                                            .ops = *layer_ops_,
                                            .machine = machine,
                                            .held_units = held_units_,
                                            .has_run_directory = files_->has_directory()}));
  compare_with_peers();
  files_->choose(*plan_);
  tiers_ = std::make_unique<offload::TierManager>(*device_, plan_->summary);
  batches_ = tiers_->claim(reserved::kBatches);
  batch_staging_ = tiers_->claim(reserved::kBatchStaging);
  output_grads_ = tiers_->claim(reserved::kOutputGrads);
  saved_ = tiers_->claim(reserved::kSaved);
  workspace_ = tiers_->claim(reserved::kWorkspace);
  losses_ = tiers_->claim(reserved::kLoss);
  loss_readback_ = tiers_->claim(reserved::kLossReadback);
  scores_readback_ = tiers_->claim(reserved::kScoresReadback);
  transfer_ = tiers_->claim(reserved::kTransfer);
  checkpoint_transfer_ = tiers_->claim(reserved::kCheckpointTransfer);
  if (plan_->uses_nvme()) {
    store_ =
        std::make_unique<NvmeStore>(*plan_, config_,
                                    NvmeStore::Parts{disturbance, recorder_, log_, files_->state(),
                                                     state_hash(model_, config_, *plan_)},
                                    *tiers_);
  }
  if (store_ != nullptr && watchdog_ != nullptr) watchdog_->watch(store_->pump());
  offload::SlotStore* const slots = store_ != nullptr ? store_->slots() : nullptr;
  offload::Pump* const pump = store_ != nullptr ? &store_->pump() : nullptr;
  parameter_files_ = make_file_line(reserved::kParameterRing, "parameter files");
  gradient_files_ = make_file_line(reserved::kGradientRing, "gradient files");
  activation_files_ = make_file_line(reserved::kActivationRing, "activation files");

  state_ = std::make_unique<offload::TrainingState>(
      plan_->state, *tiers_, slots, pump, *copy_in_,
      store_ != nullptr ? store_->take_shard_files() : offload::ShardFiles{});
  access_ =
      std::make_unique<StateAccess>(*plan_, StateAccess::Parts{*state_, *comm_, transfer_.span()});
  window_ = std::make_unique<ParameterWindow>(
      *plan_,
      ParameterWindow::Parts{*state_, *copy_in_, *comm_, *comm_queue_,
                             parameter_files_.queue.get()},
      *tiers_);
  lander_ = std::make_unique<GradientLander>(
      *plan_,
      GradientLander::Parts{*state_, *comm_, *device_state_ops_, *host_state_ops_, *compute_,
                            *comm_queue_, *copy_out_, *landing_, gradient_files_.queue.get(),
                            recorder_},
      *tiers_);
  activations_ = std::make_unique<ActivationStore>(
      *plan_,
      ActivationStore::Parts{*compute_, *activations_out_, *activations_in_,
                             activation_files_.queue.get(),
                             store_ != nullptr ? store_->activations() : nullptr},
      *tiers_);
  updater_ = std::make_unique<Updater>(
      *plan_, config_,
      Updater::Parts{{*state_, pump, *host_update_, *compute_, *param_in_, *param_out_, recorder_},
                     *device_state_ops_,
                     *host_state_ops_},
      *tiers_);
  if (watchdog_ != nullptr) {
    watchdog_->on_end([this](const std::exception_ptr& failure, std::string_view) {
      updater_->abandon(failure);
    });
  }
  gathers_ = std::make_unique<GatherOrder>(GatherOrder::Parts{
      *plan_, *window_, *updater_, *copy_in_, *comm_queue_, *compute_, *passes_, recorder_});
  if (held_units_ > 0) {
    const size_t units = plan_->layout.units().size();
    own_ = std::make_unique<OwnCompute>(
        RecordedGathers(units, plan_->step.window_numel.size(), config_.overlap), units);
  }
  if (store_ != nullptr) store_->attach();
  start(initial_values);
  window_->outdate();
  complete_units();
}

Runtime::FileLine Runtime::make_file_line(const char* ring_name, const char* queue_name) {
  FileLine line;
  line.ring = tiers_->claim(ring_name);
  if (line.ring.bytes() == 0) return line;
  line.queue = std::make_unique<offload::FileQueue>(
      store_->pump(), make_host_queue({queue_name, 1}, host_options_, recorder_),
      std::span(line.ring.data(), line.ring.bytes()));
  if (watchdog_ != nullptr) watchdog_->watch(line.queue->queue(), Watchdog::Role::waits);
  return line;
}

void Runtime::complete_units() {
  for (size_t unit = 0; unit < plan_->layout.units().size(); ++unit) {
    window_->complete(static_cast<int>(unit));
  }
  comm_queue_->synchronize();
}

Runtime::~Runtime() {
  const Watchdog::Call call(watchdog_.get(), kEnd);
  come_to_rest();
}

void Runtime::come_to_rest() noexcept {
  copy_.reset();
  commit_->finish();
  if (updater_ != nullptr) updater_->finish();
  for_working_queues([](Queue& queue) { queue.finish(); });
  comm_queue_->finish();
  for_file_queues([](Queue& files) { files.finish(); });
  if (store_ != nullptr) store_->pump().quiesce();
  if (watchdog_ != nullptr) watchdog_->forget();
}

void Runtime::compare_with_peers() {
  const uint64_t mine = fingerprint(model_, config_, *plan_, data_hash_);
  std::vector<uint64_t> all(static_cast<size_t>(world_.size));
  comm_->exchange(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank] == all[0]) continue;
    throw ConfigError(
        fmt::format("rank {} has another model, configuration or data than rank 0, or plans in "
                    "another order for want of memory: start all ranks with the same files and "
                    "options, and set strata.device_memory, strata.host_memory and strata.order",
                    rank));
  }
}

std::span<const double> Runtime::of_all_ranks(std::span<const double> mine) {
  const std::span all = std::span(of_ranks_).first(mine.size() * static_cast<size_t>(world_.size));
  const WaitScope wait(recorder_, {StateKind::other, -1, kRanksWaitLabel}, "driver");
  comm_->exchange(std::as_bytes(mine), std::as_writable_bytes(all));
  return all;
}

TensorView Runtime::output(int unit, int place) const {
  if (place < 0) return {nullptr, config_.dtype, {}};
  const auto& layout = plan_->activations.units[static_cast<size_t>(unit)];
  return {activations_->place(place), config_.dtype, {shape_.tokens(), layout.output_channels}};
}

TensorView Runtime::output_grad(int unit, int place) const {
  if (place < 0) return {nullptr, config_.dtype, {}};
  const ActivationLayout& activations = plan_->activations;
  return {output_grads_.data() + static_cast<uint64_t>(place) * activations.output_grad_bytes,
          config_.dtype,
          {shape_.tokens(), activations.units[static_cast<size_t>(unit)].output_channels}};
}

LayerContext Runtime::layer_context(const Action& action,
                                    std::span<const TensorView> params) const {
  const auto& layout = plan_->activations.units[static_cast<size_t>(action.unit)];
  const Unit& unit = plan_->layout.units()[static_cast<size_t>(action.unit)];
  const BatchViews batch(
      batches_.data() + static_cast<uint64_t>(action.micro_batch) * plan_->batch_bytes, model_,
      shape_, config_.dtype);
  return {.ops = *layer_ops_,
          .batch = shape_,
          .tokens = batch.tokens,
          .targets = batch.targets,
          .features = batch.features,
          .input = output(unit.input_unit(), action.input),
          .params = params,
          .saved = saved_.data() + layout.saved_offset +
                   static_cast<uint64_t>(action.micro_batch) * layout.saved_stride,
          .workspace = workspace_.data(),
          .random = {
              .seed = config_.seed,
              .step = static_cast<uint64_t>(step_ + 1),
              .micro_batch = static_cast<uint32_t>(action.micro_batch * world_.size + world_.rank),
              .layer = static_cast<uint32_t>(unit.layer)}};
}

void Runtime::forward(const Action& action, bool training) {
  const Unit& unit = plan_->layout.units()[static_cast<size_t>(action.unit)];
  gathers_->need(unit.needs);
  const auto params = window_->use(action.unit, *compute_);
  activations_->enter(action);
  // A recomputation is after the saved bytes alone.
  const LayerForward context{layer_context(action, params),
                             output(action.unit, action.recompute ? -1 : action.output),
                             /*accumulate=*/action.unit != unit.first_tile,
                             losses_.as<double>() + action.micro_batch,
                             training,
                             static_cast<float>(loss_scaler_.scale())};
  passes_->begin({StateKind::activation, action.unit, action.recompute ? "recompute" : "forward"});
  model_.layers[static_cast<size_t>(action.unit)]->forward(context);
  passes_->end();
  const Event done = compute_->record();
  window_->release(action.unit, done);
  activations_->leave(action, done);
}

void Runtime::backward(const Action& action) {
  if (action.recompute) forward(action, /*training=*/true);
  const auto grads = lander_->prepare(action.unit, action.micro_batch);
  const auto params = window_->use(action.unit, *compute_);
  activations_->enter(action);
  const Unit& unit = plan_->layout.units()[static_cast<size_t>(action.unit)];
  const LayerBackward context{layer_context(action, params),
                              output(action.unit, action.output),
                              output_grad(action.unit, action.output_grad),
                              output_grad(unit.input_unit(), action.input_grad),
                              /*accumulate=*/action.unit != unit.last_tile,
                              grads};
  passes_->begin({StateKind::activation, action.unit, "backward"});
  model_.layers[static_cast<size_t>(action.unit)]->backward(context);
  passes_->end();
  const Event done = compute_->record();
  window_->release(action.unit, done);
  activations_->leave(action, done);
}

void Runtime::execute(const Program& program, bool training, ScoreRows* scores) {
  for (const Action& action : program.actions) {
    switch (action.op) {
      case Action::Op::gather:
        gathers_->gather(action);
        break;
      case Action::Op::forward:
        enter(&Marks::forward_ns);
        forward(action, training);
        if (scores != nullptr) read_scores(action.unit, *scores);
        gathers_->start_all();
        break;
      case Action::Op::backward:
        enter(&Marks::backward_ns);
        backward(action);
        break;
      case Action::Op::reduce:
        lander_->land(action.unit, action.micro_batch);
        if (plan_->is_last(action.micro_batch)) landed(action.unit);
        break;
      case Action::Op::save:
        activations_->save(action);
        break;
      case Action::Op::restore:
        activations_->restore(action);
        break;
    }
    if (!config_.overlap) finish_all();
  }
  enter(nullptr);
}

// A unit's gradients are on their way, and its sub-groups may be updated behind them.
void Runtime::landed(int unit) {
  if (updater_->speculates() && !std::exchange(commit_awaited_, true)) await_commit();
  updater_->landed(unit, lander_->landed());
}

void Runtime::finish_all() {
  for (const auto& queue : {&compute_, &comm_queue_, &copy_out_, &activations_out_, &landing_}) {
    (*queue)->synchronize();
  }
  for_file_queues([](Queue& files) { files.synchronize(); });
}

// On the compute queue, the time since the last change of phase belongs to the one before.
void Runtime::enter(int64_t Marks::*phase) {
  if (phase == phase_) return;
  const auto before = std::exchange(phase_, phase);
  if (before == nullptr) return;
  compute_->run([this, before] {
    const int64_t now = now_ns();
    marks_.*before += now - marks_.last;
    marks_.last = now;
  });
}

double Runtime::read_losses(size_t count) {
  copy_out_->wait(compute_->record(), {StateKind::other, -1, "loss waits for compute"});
  copy_out_->copy(loss_readback_.data(), losses_.data(), count * sizeof(double),
                  CopyDirection::device_to_host, {StateKind::other, -1, "loss"});
  copy_out_->synchronize();
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += loss_readback_.as<double>()[i];
  return sum;
}

void Runtime::settle() {
  updater_->settle();
  commit_->synchronize();
  complete_units();
  // Every byte that was to be moved has been, by the count of completed transfers.
  if (promised() != recorder_.link_bytes(Account::update)) {
    throw Error("a transfer was lost: bytes of the update are unaccounted for");
  }
}

std::string Runtime::digest() {
  settle();
  return access_->digest(step_, loss_scaler_.scale());
}

std::vector<float> Runtime::read_parameter(std::string_view name, StateKind kind) {
  settle();
  return access_->read(plan_->layout.find(name), kind);
}

void Runtime::write_parameter(std::string_view name, std::span<const float> values) {
  if (own_ != nullptr && own_->begun) {
    throw ConfigError("a parameter is written in the middle of a step: call step() first");
  }
  if (plan_->recovers_steps) {
    throw ConfigError(
        "a parameter is written into a run whose every step can be recovered: write it in a run "
        "with strata.recovery \"checkpoint\", save that, and go on from there");
  }
  settle();
  access_->write(plan_->layout.find(name), values);
  window_->outdate();
}

std::vector<std::string> Runtime::description() const {
  std::vector<std::string> lines;
  lines.push_back(fmt::format("device: {}, {} compute threads, optimizer on {} threads ({})",
                              describe_device(*device_, config_),
                              thread_count(config_.compute_threads, world_),
                              thread_count(config_.optimizer_threads, world_), ops::active_isa()));
  lines.push_back(binding_line_);
  if (world_.size > 1) lines.push_back(comm_->description());
  if (layer_ops_->product_dtype(config_.dtype) != config_.dtype) {
    lines.push_back(fmt::format("{} products are computed in {} on this device",
                                name(config_.dtype),
                                name(layer_ops_->product_dtype(config_.dtype))));
  }
  if (store_ != nullptr) lines.push_back(store_->description());
  lines.push_back(recovery_line(plan_->summary));
  lines.push_back(begin_line_);
  return lines;
}

}  // namespace strata::engine
