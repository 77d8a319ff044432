// strata bench layers: the operations of a GPT's block and head on a device, beside the fastest
// matrix product there.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/device/cuda_device.h"
#include "kernels/device/host_device.h"
#include "kernels/ops/layer_ops.h"
#include "kernels/ops/optimizer_ops.h"
#include "kernels/ops/random.h"
#include "strata/error.h"
#include "strata/traffic.h"
#include "tools/bench.h"
#include "tools/bench_optimizer.h"

namespace strata::tools {
namespace {

using Json = nlohmann::ordered_json;
using ops::LayerOps;

struct BenchLayersOptions : BenchOptions {
  std::string device = "auto";
  std::string dtype = "bf16";
  int threads = 0;
  int64_t batch = 8;
  int64_t sequence = 1024;
  int64_t channels = 2048;
  int64_t heads = 16;
  int64_t vocab = 50257;
  double seconds = 5;
};

// What is measured: its name, and what it has to do at least.
struct Case {
  std::string name;
  double operations = 0;  // of matrix products
  double bytes = 0;       // read and written
  std::function<void()> enqueue;
};

class LayersBench {
 public:
  explicit LayersBench(const BenchLayersOptions& options)
      : o_(options),
        dtype_(float_dtype("--dtype", options.dtype)),
        threads_(options.threads > 0 ? options.threads
                                     : static_cast<int>(place_of_this_thread().size())),
        device_(make_device()),
        queue_(device_->create_queue({.name = "compute", .threads = threads_})),
        ops_(on_gpu() ? ops::make_cuda_layer_ops(*queue_)
                      : ops::make_host_layer_ops(*queue_, threads_)) {
    add_cases();
  }

  Json run() {
    std::vector<Entrant> entrants;
    for (const Case& one : cases_) {
      entrants.push_back({{}, [this, &one] {
                            one.enqueue();
                            queue_->synchronize();
                          }});
    }
    const auto times =
        run_in_turns(entrants, {o_.smoke ? 0 : o_.seconds, o_.smoke ? int64_t{1} : int64_t{0}});
    const double peak = rate(cases_.front().operations, times.front());
    Json rows = Json::array();
    for (size_t i = 0; i < cases_.size(); ++i) {
      const double tflops = rate(cases_[i].operations, times[i]) / 1e12;
      rows.push_back({{"operation", cases_[i].name},
                      {"median_ms", 1e3 * times[i].median_seconds()},
                      {"tflop_per_s", tflops},
                      {"of_peak", tflops * 1e12 / peak},
                      {"gb_per_s", rate(cases_[i].bytes, times[i]) / 1e9}});
    }
    return {{"bench", "layers"},
            {"device", device_->description()},
            {"dtype", name(dtype_)},
            {"rows", o_.batch * o_.sequence},
            {"rounds", times.front().rounds()},
            {"operations", std::move(rows)}};
  }

 private:
  static double rate(double amount, const Times& times) { return amount / times.median_seconds(); }
  bool on_gpu() const { return device_->kind() == DeviceKind::cuda; }

  std::unique_ptr<Device> make_device() {
    const std::string no_cuda = cuda_unavailable_reason();
    if (o_.device == "cuda" || (o_.device == "auto" && no_cuda.empty())) {
      if (!no_cuda.empty()) {
        throw DeviceError(fmt::format("--device is \"cuda\", but {}: say \"host\"", no_cuda));
      }
      return make_cuda_device({}, traffic_);
    }
    if (o_.device != "host" && o_.device != "auto") {
      throw ConfigError(
          fmt::format("--device is \"{}\": say \"auto\", \"host\" or \"cuda\"", o_.device));
    }
    return make_host_device({}, traffic_);
  }

  // Random values: products of zeros are faster than those of data.
  TensorView tensor(DType dtype, const Shape& shape) {
    const auto numel = shape.numel();
    const size_t bytes = static_cast<size_t>(numel) * size_bytes(dtype);
    memory_.push_back(device_->allocate(bytes));
    const MemoryBlock home = device_->allocate_pinned(bytes);
    if (dtype == DType::int32) {
      for (int64_t i = 0; i < numel; ++i) {
        reinterpret_cast<int32_t*>(home.data())[i] = static_cast<int32_t>((i * 7919) % o_.vocab);
      }
    } else {
      std::vector<float> values(static_cast<size_t>(numel));
      ops::fill_normal(values.data(), 0, numel, 0.05f, 1, memory_.size());
      ops::cast(home.data(), dtype, values.data(), DType::fp32, numel);
    }
    queue_->copy(memory_.back().data(), home.data(), bytes, CopyDirection::host_to_device, kTag);
    queue_->synchronize();
    return {memory_.back().data(), dtype, shape};
  }
  TensorView scratch(size_t bytes) {
    return tensor(DType::fp32, {static_cast<int64_t>(std::max<size_t>(bytes, 4) / 4 + 1)});
  }

  void add(std::string name, double operations, std::initializer_list<TensorView> moved,
           std::function<void()> enqueue) {
    double bytes = 0;
    for (const TensorView& view : moved) bytes += static_cast<double>(view.bytes());
    cases_.push_back({std::move(name), operations, bytes, std::move(enqueue)});
  }

  // y = x . W + b, and its backward.
  void add_linear(const std::string& name, int64_t rows, int64_t in, int64_t out, bool transposed,
                  bool backward) {
    const TensorView x = tensor(dtype_, {rows, in});
    const TensorView weight = tensor(dtype_, {transposed ? out : in, transposed ? in : out});
    const TensorView bias = transposed ? TensorView{} : tensor(dtype_, {out});
    const TensorView y = tensor(dtype_, {rows, out});
    const TensorView workspace =
        scratch(ops_->linear_workspace_bytes(dtype_, rows, in, out, transposed));
    const double products =
        2.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out);
    add(name, products, {x, weight, y}, [=, this] {
      ops_->linear_forward({.x = x,
                            .weight = weight,
                            .bias = bias,
                            .out = y,
                            .weight_transposed = transposed,
                            .workspace = workspace});
    });
    if (!backward) return;
    const TensorView x_grad = tensor(dtype_, {rows, in});
    const TensorView weight_grad = tensor(dtype_, weight.shape);
    add(name + " backward", 2 * products, {x, weight, y, x_grad, weight_grad}, [=, this] {
      ops_->linear_backward({.x = x,
                             .weight = weight,
                             .out_grad = y,
                             .x_grad = x_grad,
                             .weight_grad = {weight_grad},
                             .weight_transposed = transposed,
                             .workspace = workspace});
    });
  }

  // Half of all pairs of positions, twice forward and five times in backward.
  void add_attention() {
    const Shape qkv_shape = {o_.batch, o_.sequence, 3 * o_.channels};
    const TensorView qkv = tensor(dtype_, qkv_shape);
    const TensorView out = tensor(dtype_, {o_.batch, o_.sequence, o_.channels});
    const TensorView out_grad = tensor(dtype_, out.shape);
    const TensorView qkv_grad = tensor(dtype_, qkv_shape);
    const TensorView saved = scratch(ops_->attention_saved_bytes(dtype_, qkv_shape, o_.heads));
    const TensorView workspace =
        scratch(ops_->attention_workspace_bytes(dtype_, qkv_shape, o_.heads));
    const double product = static_cast<double>(o_.batch * o_.channels) *
                           static_cast<double>(o_.sequence) * static_cast<double>(o_.sequence);
    add("attention", 2 * product, {qkv, out}, [=, this] {
      ops_->attention_forward(
          {.qkv = qkv, .out = out, .saved = saved, .workspace = workspace, .heads = o_.heads});
    });
    add("attention backward", 5 * product, {qkv, out, out_grad, qkv_grad}, [=, this] {
      ops_->attention_backward({.qkv = qkv,
                                .out = out,
                                .out_grad = out_grad,
                                .saved = saved,
                                .qkv_grad = qkv_grad,
                                .workspace = workspace,
                                .heads = o_.heads});
    });
  }

  void add_elementwise(int64_t rows) {
    const TensorView x = tensor(dtype_, {rows, o_.channels});
    const TensorView y = tensor(dtype_, {rows, o_.channels});
    const TensorView weight = tensor(dtype_, {o_.channels});
    const TensorView bias = tensor(dtype_, {o_.channels});
    const TensorView mean = tensor(DType::fp32, {rows});
    const TensorView rstd = tensor(DType::fp32, {rows});
    add("layer norm", 0, {x, y}, [=, this] {
      ops_->layer_norm_forward(
          {.x = x, .weight = weight, .bias = bias, .out = y, .mean = mean, .rstd = rstd});
    });
    add("RMS norm", 0, {x, y},
        [=, this] { ops_->rms_norm_forward({.x = x, .weight = weight, .out = y, .rstd = rstd}); });
    const TensorView wide = tensor(dtype_, {rows, 4 * o_.channels});
    const TensorView wide_out = tensor(dtype_, wide.shape);
    add("gelu", 0, {wide, wide_out}, [=, this] { ops_->gelu_forward({wide, wide_out}); });
  }

  void add_cross_entropy(int64_t rows) {
    const TensorView logits = tensor(dtype_, {rows, o_.vocab});
    const TensorView grad = tensor(dtype_, logits.shape);
    const TensorView targets = tensor(DType::int32, {rows});
    const TensorView loss = scratch(sizeof(double));
    const TensorView workspace = scratch(ops_->cross_entropy_workspace_bytes(rows));
    add("cross-entropy", 0, {logits, grad}, [=, this] {
      ops_->cross_entropy({.logits = logits,
                           .targets = targets,
                           .logits_grad = grad,
                           .loss = loss.as<double>(),
                           .workspace = workspace});
    });
  }

  void add_cases() {
    const int64_t rows = o_.batch * o_.sequence;
    const int64_t square = o_.smoke ? 64 : on_gpu() ? 8192 : 2048;
    add_linear(fmt::format("product of {0} x {0} x {0}", square), square, square, square, false,
               false);
    add_linear("qkv", rows, o_.channels, 3 * o_.channels, false, true);
    add_linear("MLP up", rows, o_.channels, 4 * o_.channels, false, true);
    add_linear("MLP down", rows, 4 * o_.channels, o_.channels, false, true);
    add_attention();
    add_elementwise(rows);
    const int64_t head_rows = std::min<int64_t>(rows, 8192);
    add_linear("logits", head_rows, o_.channels, o_.vocab, true, true);
    add_cross_entropy(head_rows);
  }

  static constexpr TrafficTag kTag = {StateKind::other, -1, "bench"};
  const BenchLayersOptions o_;
  const DType dtype_;
  const int threads_;
  NullTrafficSink traffic_;
  const std::unique_ptr<Device> device_;
  std::vector<MemoryBlock> memory_;
  const std::unique_ptr<Queue> queue_;
  const std::unique_ptr<LayerOps> ops_;
  std::vector<Case> cases_;
};

void print_text(const Json& result) {
  const std::vector<Column> columns = {{"operation", "operation", -30},
                                       {"median_ms", "median ms", 11, "{:.3f}"},
                                       {"tflop_per_s", "TFLOP/s", 10, "{:.2f}"},
                                       {"of_peak", "of peak", 9, "{:.3f}"},
                                       {"gb_per_s", "GB/s", 9, "{:.1f}"}};
  fmt::print("{}, {}, {} rows, {} rounds; the peak is the square product's\n\n{}",
             result.at("device").get<std::string>(), result.at("dtype").get<std::string>(),
             result.at("rows").get<int64_t>(), result.at("rounds").get<int>(),
             table(columns, result.at("operations")));
}

Json bench_layers(const BenchLayersOptions& options) {
  BenchLayersOptions sized = options;
  if (options.smoke) {
    sized.batch = 1;
    sized.sequence = 32;
    sized.channels = 64;
    sized.heads = 2;
    sized.vocab = 100;
  }
  if (sized.channels % sized.heads != 0) {
    throw ConfigError("--channels is not a multiple of --heads: change one of them");
  }
  return LayersBench(sized).run();
}

}  // namespace

void add_bench_layers(CLI::App& bench) {
  auto options = std::make_shared<BenchLayersOptions>();
  CLI::App* command = bench.add_subcommand(
      "layers", "The operations of a GPT's layers beside the device's fastest matrix product");
  command->add_option("--device", options->device, "auto (the default), host or cuda");
  command->add_option("--dtype", options->dtype, "bf16 (the default), fp16 or fp32");
  command->add_option("--threads", options->threads, "Of the host device; all cores if not given")
      ->check(CLI::PositiveNumber);
  const auto size = [&](const char* name, int64_t& value, const char* help) {
    command->add_option(name, value, fmt::format("{}; {} if not given", help, value))
        ->check(CLI::PositiveNumber);
  };
  size("--batch", options->batch, "Rows of a micro-batch");
  size("--sequence", options->sequence, "Tokens a row");
  size("--channels", options->channels, "Channels");
  size("--heads", options->heads, "Attention heads");
  size("--vocab", options->vocab, "Vocabulary");
  command->add_option("--seconds", options->seconds, "Repeat this long; 5 if not given")
      ->check(CLI::PositiveNumber);
  command->footer(
      "Each operation is timed from its enqueueing until the device is done, all of them in "
      "turns;\n"
      "medians. Bytes are the tensors', each read or written once.\n"
      "Example: strata bench layers --channels 2048 --heads 16");
  run_bench(*command, options, &bench_layers, &print_text);
}

}  // namespace strata::tools
