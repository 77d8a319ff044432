#include "strata/engine.h"

#include <utility>

#include "engine/runtime/runtime.h"

namespace strata {

Engine::Engine(Model model, const Config& config, const World& world, const Options& options)
    : Engine(std::make_unique<engine::Runtime>(std::move(model), config, world, options,
                                               engine::Disturbance{})) {}

Engine::Engine(std::unique_ptr<engine::Runtime> runtime) : runtime_(std::move(runtime)) {}
Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;

StepResult Engine::train_step(std::span<const Batch> micro_batches) {
  return runtime_->together("train_step", [&] { return runtime_->train_step(micro_batches); });
}

UnitLease& UnitLease::operator=(UnitLease&& other) noexcept {
  if (this != &other) {
    reset();
    runtime_ = std::exchange(other.runtime_, nullptr);
    unit_ = other.unit_;
    parameters_ = std::exchange(other.parameters_, {});
  }
  return *this;
}

void UnitLease::reset() noexcept {
  if (runtime_ != nullptr) std::exchange(runtime_, nullptr)->let_go(unit_);
  parameters_ = {};
}

UnitLease Engine::gather(int unit) {
  return runtime_->together(
      "gather", [&] { return UnitLease(runtime_.get(), unit, runtime_->gather(unit)); });
}

std::span<const TensorView> Engine::gradients(int unit) {
  return runtime_->together("gradients", [&] { return runtime_->gradients(unit); });
}

void Engine::reduce(int unit) {
  runtime_->together("reduce", [&] { runtime_->reduce(unit); });
}

StepResult Engine::step(double loss) {
  return runtime_->together("step", [&] { return runtime_->step(loss); });
}

double Engine::loss_scale() const { return runtime_->loss_scale(); }
void* Engine::stream() const { return runtime_->stream(); }

double Engine::evaluate(std::span<const Batch> micro_batches) {
  return runtime_->together("evaluate", [&] { return runtime_->evaluate(micro_batches); });
}

std::vector<float> Engine::scores(const Batch& batch) {
  return runtime_->together("scores", [&] { return runtime_->scores(batch); });
}

std::vector<float> Engine::next_token_scores(std::span<const int32_t> tokens) {
  return runtime_->together("next_token_scores",
                            [&] { return runtime_->next_token_scores(tokens); });
}

std::string Engine::digest() {
  return runtime_->together("digest", [&] { return runtime_->digest(); });
}

std::vector<float> Engine::read_parameter(std::string_view name, StateKind kind) {
  return runtime_->together("read_parameter", [&] { return runtime_->read_parameter(name, kind); });
}

void Engine::write_parameter(std::string_view name, std::span<const float> values) {
  runtime_->together("write_parameter", [&] { runtime_->write_parameter(name, values); });
}

void Engine::save_checkpoint(const std::string& path) {
  runtime_->together("save_checkpoint", [&] { runtime_->save_checkpoint(path); });
}

std::string Engine::save_checkpoint(int keep) {
  return runtime_->together("save_checkpoint", [&] { return runtime_->save_checkpoint(keep); });
}

void Engine::begin_checkpoint(int keep) {
  runtime_->together("begin_checkpoint", [&] { runtime_->begin_checkpoint(keep); });
}

std::vector<CheckpointOutcome> Engine::await_checkpoints() {
  return runtime_->together("await_checkpoints", [&] { return runtime_->await_checkpoints(); });
}

void Engine::set_data_position(int64_t position) { runtime_->set_data_position(position); }
int64_t Engine::data_position() const { return runtime_->data_position(); }

void Engine::remove_state_files() {
  runtime_->together("remove_state_files", [&] { runtime_->remove_state_files(); });
}

int64_t Engine::steps_done() const { return runtime_->steps_done(); }
const PlanSummary& Engine::plan() const { return runtime_->plan().summary; }
std::vector<std::string> Engine::description() const { return runtime_->description(); }

void Engine::settle() {
  runtime_->together("settle", [&] { runtime_->settle(); });
}

void Engine::write_trace(const std::string& path) {
  runtime_->together("write_trace", [&] {
    runtime_->settle();
    runtime_->recorder().write_trace(path, runtime_->rank());
  });
}

}  // namespace strata
