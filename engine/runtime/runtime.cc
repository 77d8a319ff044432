#include "engine/runtime/runtime.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/runtime/cpu_binding.h"
#include "engine/runtime/fingerprint.h"
#include "strata/clock.h"
#include "strata/wait_scope.h"

namespace strata::engine {
namespace {

constexpr size_t kTraceEvents = 1 << 20;

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
  if (plan_->state.uses_nvme()) {
    store_ = std::make_unique<NvmeStore>(*plan_, config_,
                                         NvmeStore::Parts{disturbance, recorder_, log_}, *tiers_);
  }
  offload::SlotStore* const slots = store_ != nullptr ? &store_->slots() : nullptr;
  offload::Pump* const pump = store_ != nullptr ? &store_->pump() : nullptr;

  state_ = std::make_unique<offload::TrainingState>(plan_->state, *tiers_, slots, pump, *copy_in_);
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
      Updater::Parts{{*state_, pump, *host_update_, *compute_, *param_in_, *param_out_, recorder_},
                     *device_state_ops_,
                     *host_state_ops_},
      *tiers_);
  gathers_ = std::make_unique<GatherOrder>(
      GatherOrder::Parts{*window_, *updater_, *copy_in_, *compute_, *passes_, recorder_});
  if (store_ != nullptr) store_->attach();
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
  gathers_->need(plan_->layout.units()[static_cast<size_t>(action.unit)].needs);
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
        gathers_->gather(action);
        break;
      case Action::Op::forward:
        forward(action, training);
        if (action.unit == last_unit) mark(&Marks::forward_ns);
        gathers_->start_all();
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
  if (store_ != nullptr) lines.push_back(store_->description());
  lines.push_back(fmt::format("recovery: {} (a killed run starts from the beginning)",
                              plan_->summary.recovery));
  return lines;
}

}  // namespace strata::engine
