#include "engine/runtime/runtime.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "engine/runtime/cpu_binding.h"
#include "engine/runtime/fingerprint.h"
#include "engine/runtime/lr_schedule.h"
#include "strata/clock.h"
#include "strata/wait_scope.h"

namespace strata::engine {
namespace {

constexpr size_t kTraceEvents = 1 << 20;
constexpr size_t kPumpRequests = 256;
constexpr const char* kRanksWaitLabel = "step waits for other ranks";
constexpr const char* kUpdateWaitLabel = "compute waits for the last update";

double seconds(int64_t ns) { return static_cast<double>(ns) * 1e-9; }

}  // namespace

Runtime::Runtime(Model model, const Config& config, const World& world,
                 const Engine::Options& options, const Disturbance& disturbance)
    : model_(std::move(model)),
      config_(config),
      world_(world),
      shape_{options.micro_batch.batch > 0 ? options.micro_batch.batch : config.micro_batch,
             options.micro_batch.sequence},
      data_hash_(options.data_hash),
      stop_(options.stop),
      log_(options.log != nullptr ? *options.log : silent_),
      recorder_(options.keep_trace ? kTraceEvents : 0),
      loss_scaler_(config),
      of_ranks_(kStepDoubles * static_cast<size_t>(world.size)) {
  const int compute_threads = thread_count(config_.compute_threads, world_);
  const int optimizer_threads = thread_count(config_.optimizer_threads, world_);
  const CpuBinding binding = cpu_binding(config_, world_, this_machine(), optimizer_threads);
  binding_line_ = binding.description;
  const HostDeviceOptions host = host_options(config_, disturbance, binding.memory_nodes);
  device_ = make_device(config_, host, recorder_, log_);
  compute_ = device_->create_queue({"compute", compute_threads});
  copy_in_ = device_->create_queue({"copy in", 1});
  copy_out_ = device_->create_queue({"copy out", 1});
  comm_queue_ = device_->create_queue({"comm", 1});
  param_in_ = device_->create_queue({"parameters in", 1});
  param_out_ = device_->create_queue({"parameters out", 1});
  landing_ = make_host_queue({"landing", optimizer_threads}, host, recorder_);
  host_update_ =
      make_host_queue({"host update", optimizer_threads, binding.places}, host, recorder_);
  passes_ = std::make_unique<ComputeSpans>(*compute_, recorder_);
  layer_ops_ = ops::make_host_layer_ops(*compute_, compute_threads);
  if (disturbance.wrap_ops) layer_ops_ = disturbance.wrap_ops(std::move(layer_ops_));
  device_state_ops_ = ops::make_host_state_ops();
  host_state_ops_ = ops::make_host_state_ops();
  comm_ = make_communicator(world_, *comm_queue_, *device_state_ops_,
                            {.timeout_s = config_.comm_timeout_s}, recorder_);
  together([&] { build(disturbance); });
}

void Runtime::build(const Disturbance& disturbance) {
  plan_ = std::make_unique<Plan>(make_plan({model_, config_, world_, shape_, *layer_ops_,
                                            MachineMemory::of_host(config_, world_.local_size)}));
  compare_with_peers();
  tiers_ = std::make_unique<offload::TierManager>(*device_, plan_->summary);
  frozen_ = tiers_->claim(reserved::kFrozen);
  tokens_ = tiers_->claim(reserved::kTokens);
  token_staging_ = tiers_->claim(reserved::kTokenStaging);
  boundary_ = tiers_->claim(reserved::kBoundary);
  output_grads_ = tiers_->claim(reserved::kOutputGrads);
  saved_ = tiers_->claim(reserved::kSaved);
  workspace_ = tiers_->claim(reserved::kWorkspace);
  losses_ = tiers_->claim(reserved::kLoss);
  loss_readback_ = tiers_->claim(reserved::kLossReadback);
  scores_readback_ = tiers_->claim(reserved::kScoresReadback);
  if (plan_->state.uses_nvme()) make_store(disturbance);

  state_ = std::make_unique<offload::TrainingState>(plan_->state, *tiers_, store_.get(),
                                                    pump_.get(), *copy_in_);
  access_ = std::make_unique<StateAccess>(
      *plan_, StateAccess::Parts{*state_, frozen_, *copy_in_, *comm_}, *tiers_);
  window_ = std::make_unique<ParameterWindow>(
      *plan_, ParameterWindow::Parts{*state_, frozen_, *copy_in_, *comm_, *comm_queue_}, *tiers_);
  lander_ = std::make_unique<GradientLander>(
      *plan_,
      GradientLander::Parts{*state_, *comm_, *device_state_ops_, *host_state_ops_, *compute_,
                            *comm_queue_, *copy_out_, *landing_, recorder_},
      *tiers_);
  updater_ = std::make_unique<Updater>(
      *plan_, config_,
      Updater::Parts{
          {*state_, pump_.get(), *host_update_, *compute_, *param_in_, *param_out_, recorder_},
          *device_state_ops_,
          *host_state_ops_},
      *tiers_);
  if (pump_ != nullptr) attach_io();
  access_->initialize(config_.seed);
}

// Work that a failure left behind still uses what is about to go.
Runtime::~Runtime() {
  updater_.reset();
  for (const auto& queue : {&compute_, &copy_in_, &param_in_, &copy_out_, &param_out_, &comm_queue_,
                            &landing_, &host_update_}) {
    (*queue)->finish();
  }
}

void Runtime::compare_with_peers() {
  const uint64_t mine = fingerprint(model_, config_, *plan_, data_hash_);
  std::vector<uint64_t> all(static_cast<size_t>(world_.size));
  comm_->exchange(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank] == all[0]) continue;
    throw ConfigError(
        fmt::format("rank {} has another model, configuration or data than rank 0: start all "
                    "ranks with the same files and options",
                    rank));
  }
}

std::span<const double> Runtime::of_all_ranks(std::span<const double> mine) {
  const std::span all = std::span(of_ranks_).first(mine.size() * static_cast<size_t>(world_.size));
  const WaitScope wait(recorder_, {StateKind::other, -1, kRanksWaitLabel}, "driver");
  comm_->exchange(std::as_bytes(mine), std::as_writable_bytes(all));
  return all;
}

void Runtime::make_store(const Disturbance& disturbance) {
  io::IoEngine::Options engine_options;
  engine_options.block_bytes = config_.io_block_bytes;
  pump_ = std::make_unique<offload::Pump>(
      std::make_unique<io::IoEngine>(make_io_backend(config_, disturbance, log_), engine_options,
                                     recorder_),
      kPumpRequests);

  const io::BlockFileOptions file_options = block_file_options(config_);
  offload::SlotLayout layout = plan_->state.slot_layout();
  const uint64_t state_bytes = layout.file_bytes();
  offload::SlotStore::Files files{
      io::StripedFile::create_scratch(make_stripes(config_, disturbance, state_bytes, log_),
                                      state_bytes, file_options, log_),
      {}};
  tiers_->claim_disk(reserved::kStateFile, files.state.bytes());
  if (const uint64_t journal_bytes = offload::SlotStore::journal_bytes(layout)) {
    files.journal = io::BlockFile::create_scratch(config_.nvme_paths.front(), journal_bytes,
                                                  file_options, log_);
    tiers_->claim_disk(reserved::kJournalFile, journal_bytes);
    journal_record_ = tiers_->claim(reserved::kJournalRecord);
  }
  store_ = std::make_unique<offload::SlotStore>(
      std::move(layout), std::move(files), *pump_,
      std::span<std::byte>(journal_record_.data(), journal_record_.bytes()));
}

void Runtime::attach_io() {
  io::IoResources resources = {.files = store_->descriptors()};
  std::vector<std::string> names = {reserved::kTransfer, reserved::kJournalRecord};
  for (const Reservation& staging : offload::reservations_for(plan_->staging)) {
    names.push_back(staging.name);
  }
  for (const std::string& name : names) {
    const std::span<std::byte> memory = tiers_->claimed(name);
    if (!memory.empty()) resources.buffers.push_back(memory);
  }
  pump_->attach(resources);
}

void Runtime::check_batches(std::span<const Batch> batches, size_t expected) const {
  if (batches.size() != expected) {
    throw ConfigError(
        fmt::format("a step takes {} micro-batches and was given {}", expected, batches.size()));
  }
  const auto tokens = static_cast<size_t>(shape_.tokens());
  for (const Batch& batch : batches) {
    if (batch.shape != shape_ || batch.tokens.size() != tokens || batch.targets.size() != tokens) {
      throw ConfigError(fmt::format("a micro-batch is {} rows of {} tokens and as many targets",
                                    shape_.batch, shape_.sequence));
    }
    const auto bad = [&](int32_t id, int32_t least) {
      return id < least || id >= model_.vocab_size;
    };
    for (size_t i = 0; i < tokens; ++i) {
      if (bad(batch.tokens[i], 0) || bad(batch.targets[i], -1)) {
        throw ConfigError(fmt::format("token {} or target {} is outside the vocabulary of {}",
                                      batch.tokens[i], batch.targets[i], model_.vocab_size));
      }
    }
  }
}

void Runtime::upload_tokens(std::span<const Batch> batches) {
  auto* staging = token_staging_.as<int32_t>();
  for (const Batch& batch : batches) {
    staging = std::copy(batch.tokens.begin(), batch.tokens.end(), staging);
    staging = std::copy(batch.targets.begin(), batch.targets.end(), staging);
  }
  const auto bytes = static_cast<size_t>(staging - token_staging_.as<int32_t>()) * sizeof(int32_t);
  copy_in_->copy(tokens_.data(), token_staging_.data(), bytes, CopyDirection::host_to_device,
                 {StateKind::other, -1, "tokens"});
  compute_->wait(copy_in_->record(), {StateKind::other, -1, "compute waits for tokens"});
}

TensorView Runtime::boundary(int unit) const {
  const auto& layout = plan_->activations.units[static_cast<size_t>(unit)];
  if (layout.output_channels == 0) return {};
  return {boundary_.data() + layout.output_offset,
          config_.dtype,
          {shape_.tokens(), layout.output_channels}};
}

// Gradient of a unit's output: two buffers taken in turn down the units.
TensorView Runtime::output_grad(int unit) const {
  TensorView view = boundary(unit);
  if (view) {
    view.data = output_grads_.data() +
                static_cast<uint64_t>(unit % 2) * plan_->activations.output_grad_bytes;
  }
  return view;
}

LayerContext Runtime::layer_context(const Action& action,
                                    std::span<const TensorView> params) const {
  const auto& layout = plan_->activations.units[static_cast<size_t>(action.unit)];
  const Shape rows = {shape_.batch, shape_.sequence};
  const auto token_bytes = static_cast<size_t>(shape_.tokens()) * sizeof(int32_t);
  // Each micro-batch's tokens are followed by its targets.
  std::byte* tokens = tokens_.data() + static_cast<size_t>(action.micro_batch) * 2 * token_bytes;
  return {.ops = *layer_ops_,
          .batch = shape_,
          .tokens = {tokens, DType::int32, rows},
          .targets = {tokens + token_bytes, DType::int32, rows},
          .input = action.unit == 0 ? TensorView{} : boundary(action.unit - 1),
          .params = params,
          .saved = saved_.data() + layout.saved_offset,
          .workspace = workspace_.data()};
}

void Runtime::forward(const Action& action, bool training) {
  const std::vector<int>& needs = plan_->layout.units()[static_cast<size_t>(action.unit)].needs;
  gather_postponed(needs);
  // Those that were not gathered are used where they lie.
  for (int unit : needs) await_parameters(unit, *compute_);
  const auto params = window_->use(action.unit, *compute_);
  // A recomputation is after the saved bytes alone.
  const TensorView output = action.recompute ? TensorView{} : boundary(action.unit);
  const LayerForward context{layer_context(action, params), output,
                             losses_.as<double>() + action.micro_batch, training,
                             static_cast<float>(loss_scaler_.scale())};
  passes_->begin();
  model_.layers[static_cast<size_t>(action.unit)]->forward(context);
  passes_->end({StateKind::activation, action.unit, action.recompute ? "recompute" : "forward"});
  window_->release(action.unit, compute_->record());
}

void Runtime::backward(const Action& action) {
  if (action.recompute) forward(action, /*training=*/true);
  const auto grads = lander_->prepare(action.unit);
  const auto params = window_->use(action.unit, *compute_);
  const TensorView input_grad = action.unit == 0 ? TensorView{} : output_grad(action.unit - 1);
  const LayerBackward context{layer_context(action, params), output_grad(action.unit), input_grad,
                              grads};
  passes_->begin();
  model_.layers[static_cast<size_t>(action.unit)]->backward(context);
  passes_->end({StateKind::activation, action.unit, "backward"});
  window_->release(action.unit, compute_->record());
}

void Runtime::execute(const Program& program, bool training) {
  const int last_unit = static_cast<int>(model_.layers.size()) - 1;
  const int last_micro_batch = static_cast<int>(config_.accumulation_steps) - 1;
  for (const Action& action : program.actions) {
    switch (action.op) {
      case Action::Op::gather:
        gather(action);
        break;
      case Action::Op::forward:
        forward(action, training);
        if (action.unit == last_unit) mark(&Marks::forward_ns);
        gather_postponed(postponed_.size());
        break;
      case Action::Op::backward:
        backward(action);
        if (action.unit == 0) mark(&Marks::backward_ns);
        break;
      case Action::Op::reduce:
        lander_->land(action.unit, action.micro_batch == 0, action.micro_batch == last_micro_batch);
        if (action.micro_batch == last_micro_batch) {
          updater_->landed(action.unit, lander_->landed());
        }
        break;
    }
    if (!config_.overlap) finish_all();
  }
}

// A gather ahead of its use waits for no update while there is something to compute: it comes after
// that. The order of gathers stays, and that of all collectives: updates are behind it before the
// first reduction.
void Runtime::gather(const Action& action) {
  if (postponed_.empty() && updater_->has_parameters(action.unit)) {
    await_parameters(action.unit, *copy_in_);
    window_->gather(action.unit, action.slot);
  } else {
    postponed_.push_back(action);
  }
}

// Up to the last one of these units.
void Runtime::gather_postponed(const std::vector<int>& units) {
  for (size_t i = postponed_.size(); i-- > 0;) {
    if (std::find(units.begin(), units.end(), postponed_[i].unit) == units.end()) continue;
    gather_postponed(i + 1);
    return;
  }
}

void Runtime::gather_postponed(size_t count) {
  const auto end = postponed_.begin() + static_cast<int64_t>(count);
  for (auto action = postponed_.begin(); action != end; ++action) {
    await_parameters(action->unit, *copy_in_);
    window_->gather(action->unit, action->slot);
  }
  postponed_.erase(postponed_.begin(), end);
}

// Makes later work on `queue` find the unit's parameters as the last step left them. Compute stands
// still from when it had nothing left to do while the driver waited here.
void Runtime::await_parameters(int unit, Queue& queue) {
  const int64_t begin = now_ns();
  if (!updater_->await_parameters(unit, queue)) return;
  compute_->run([this, unit, begin, end = now_ns()] {
    const int64_t since = std::max(begin, passes_->last_end_ns());
    if (since >= end) return;
    record_wait(recorder_, {StateKind::param, unit, kUpdateWaitLabel}, compute_->name(), since,
                end);
  });
}

void Runtime::finish_all() {
  for (const auto& queue : {&compute_, &comm_queue_, &copy_out_, &landing_}) {
    (*queue)->synchronize();
  }
}

// Adds the time since the last mark, on the compute queue, to a phase.
void Runtime::mark(int64_t Marks::*phase) {
  compute_->run([this, phase] {
    const int64_t now = now_ns();
    marks_.*phase += now - marks_.last;
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

StepResult Runtime::train_step(std::span<const Batch> micro_batches) {
  check_batches(micro_batches, static_cast<size_t>(config_.accumulation_steps));
  StepResult result;
  const int64_t begin = now_ns();
  const LinkBytes moved_before = moved();
  const StepResult::Exposed exposed_before = exposed();
  marks_ = {};
  marks_.last = begin;

  result.step = step_ + 1;
  result.lr = learning_rate(config_, result.step);
  // Local gradients are means over a rank's micro-batch, times the loss scale; the step's is the
  // mean over all of them.
  result.loss_scale = loss_scaler_.scale();
  const double mean_scale =
      1.0 / (result.loss_scale * static_cast<double>(config_.accumulation_steps * world_.size));
  updater_->begin({result.step, result.lr, mean_scale});
  upload_tokens(micro_batches);
  execute(plan_->step, /*training=*/true);
  const double losses = read_losses(micro_batches.size());
  const double squares = lander_->finish();
  const int64_t step_begin = now_ns();
  const double stop = stop_ != nullptr ? stop_->load() : 0;
  const auto of_ranks = of_all_ranks(std::array{losses, squares, stop});
  double sum_of_squares = 0;
  for (size_t at = 0; at < of_ranks.size(); at += kStepDoubles) {
    result.loss += of_ranks[at];
    sum_of_squares += of_ranks[at + 1];
    result.stop = std::max(result.stop, static_cast<int>(of_ranks[at + 2]));
  }
  result.loss /= static_cast<double>(config_.accumulation_steps * world_.size);
  update(result, sum_of_squares, mean_scale);

  check_traffic(moved_before, planned(result));
  const int64_t end = now_ns();
  result.tokens = shape_.tokens() * config_.accumulation_steps * world_.size;
  result.seconds = seconds(end - begin);
  result.phases = {seconds(marks_.forward_ns), seconds(marks_.backward_ns),
                   seconds(end - step_begin)};
  result.exposed = exposed() - exposed_before;
  result.moved = moved() - moved_before;
  result.peak = tiers_->peak_bytes();
  return result;
}

StepResult::Exposed Runtime::exposed() const {
  return {seconds(recorder_.waited_ns(ParameterWindow::kWaitLabel)),
          seconds(recorder_.waited_ns(GradientLander::kSlotWaitLabel)),
          seconds(recorder_.waited_ns(GradientLander::kLandingWaitLabel)),
          seconds(recorder_.waited_ns(kRanksWaitLabel)),
          seconds(recorder_.waited_ns(offload::OptimizerPipeline::kWaitLabel)),
          seconds(recorder_.waited_ns(kUpdateWaitLabel))};
}

// What updates move counts when they are submitted: the last of it moves under the next step.
LinkBytes Runtime::moved() const { return recorder_.link_bytes(false) + updater_->promised(); }

void Runtime::settle() {
  updater_->settle();
  // Every byte that was to be moved has been, by the count of completed transfers.
  if (updater_->promised() != recorder_.link_bytes(true)) {
    throw Error("a transfer was lost: bytes of the update are unaccounted for");
  }
}

StateAccess& Runtime::state() {
  settle();
  return *access_;
}

void Runtime::check_traffic(const LinkBytes& before, const LinkBytes& planned) const {
  const LinkBytes bytes = moved() - before;
  for (size_t link = 0; link < kLinkCount; ++link) {
    if (bytes[link] == planned[link]) continue;
    throw Error(fmt::format("{} bytes went over {} where the plan says {}", bytes[link],
                            name(static_cast<Activity>(link)), planned[link]));
  }
}

LinkBytes Runtime::planned(const StepResult& result) const {
  const LinkBytes step = plan_->summary.step_traffic + result.speculation.redone_bytes;
  return result.skipped ? step - plan_->update_traffic : step;
}

// Norm, clip factor, overflow decision; then every sub-group; then commit.
void Runtime::update(StepResult& result, double sum_of_squares, double mean_scale) {
  result.grad_norm = std::sqrt(sum_of_squares) * mean_scale;
  result.skipped = !std::isfinite(sum_of_squares);
  if (result.skipped) {
    updater_->skip();
  } else {
    updater_->update(clip_factor(result.grad_norm));
    if (plan_->commits()) commit();
    ++step_;
  }
  loss_scaler_.update(result.skipped);
  result.speculation = updater_->speculation();
}

// torch.nn.utils.clip_grad_norm_'s.
double Runtime::clip_factor(double grad_norm) const {
  if (config_.gradient_clipping <= 0) return 1.0;
  return std::min(1.0, config_.gradient_clipping / (grad_norm + 1e-6));
}

// Nobody starts the next step, which writes over the generation before, until all ranks have this
// one.
void Runtime::commit() {
  {
    const WaitScope wait(recorder_, {StateKind::master, -1, offload::OptimizerPipeline::kWaitLabel},
                         "driver");
    updater_->settle();
    const int64_t payload = step_ + 1;
    store_->commit(std::as_bytes(std::span(&payload, 1)));
  }
  of_all_ranks(std::array{0.0});
}

std::vector<std::string> Runtime::description() const {
  std::vector<std::string> lines;
  lines.push_back(fmt::format("device: {}, {} compute threads, optimizer on {} threads ({})",
                              device_->description(), thread_count(config_.compute_threads, world_),
                              thread_count(config_.optimizer_threads, world_), ops::active_isa()));
  lines.push_back(binding_line_);
  if (world_.size > 1) lines.push_back(comm_->description());
  if (layer_ops_->product_dtype(config_.dtype) != config_.dtype) {
    lines.push_back(fmt::format("{} products are computed in {} on this device",
                                name(config_.dtype),
                                name(layer_ops_->product_dtype(config_.dtype))));
  }
  if (store_ != nullptr) {
    lines.push_back(fmt::format("nvme: {} ({}, {}), {} sub-groups, {} slot{}", pump_->engine_name(),
                                store_->file().direct() ? "O_DIRECT" : "buffered",
                                describe_paths(config_, store_->file()), plan_->summary.sub_groups,
                                plan_->state.slots, plan_->state.slots == 1 ? "" : "s"));
  }
  lines.push_back(fmt::format("recovery: {} (a killed run starts from the beginning)",
                              plan_->summary.recovery));
  return lines;
}

}  // namespace strata::engine
