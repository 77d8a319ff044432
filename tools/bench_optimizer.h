// What the benches of the optimizer share: options, training state to work on, the ceiling.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/ops/optimizer_ops.h"
#include "strata/dtype.h"
#include "tools/bench.h"
#include "tools/bench_stream.h"

namespace strata::tools {

struct OptimizerBenchOptions : BenchOptions {
  std::optional<int64_t> numel;
  int threads = 0;
  double seconds = 5;
  std::optional<int64_t> repeat;
};

// Adds these options, without BenchOptions, to a command; `options` must outlive it.
void add_optimizer_options(CLI::App& command, OptimizerBenchOptions& options);

// The options' meaning. Throws ConfigError where they have none.
struct OptimizerBenchSetting {
  explicit OptimizerBenchSetting(const OptimizerBenchOptions& options);

  int64_t numel;  // whole grains
  int threads;
  Repetition repetition;
};

// Throws ConfigError naming the option when it is not a floating-point dtype.
DType float_dtype(const std::string& option, const std::string& value);

// How training state is kept.
struct StateForm {
  DType grad = DType::bf16;
  DType param = DType::bf16;
  Codec master = Codec::fp32;
  Codec moments = Codec::fp32;
};

// How the options name it; "all" is every codec.
struct CodecOptions {
  std::string master_codec = "fp32";
  std::string moment_codec = "fp32";
};
void add_codec_options(CLI::App& command, CodecOptions& options);
// Every combination of codecs asked for. Throws ConfigError where the options have no meaning.
std::vector<StateForm> codec_forms(const CodecOptions& options, DType grad, DType param);

// Training state of one optimizer, with ordinary values. Filled by the calling thread's team.
class TrainingState {
 public:
  TrainingState(OptimizerKind kind, int64_t numel, const StateForm& form);

  // What a state of this kind takes.
  static uint64_t bytes(OptimizerKind kind, int64_t numel, const StateForm& form);

  ops::EncodedSpans encoded_spans() const;
  // The same where all of it is fp32.
  ops::OptimizerSpans optimizer_spans() const;
  StreamSpans stream_spans() const;
  // Every fp32 moment becomes the smallest normal number, which a gradient of zero takes below it.
  void decay_moments() const;

 private:
  const int64_t numel_;
  const StateForm form_;
  BenchMemory master_;
  BenchMemory grad_;
  BenchMemory param_;
  std::optional<BenchMemory> exp_avg_;
  std::optional<BenchMemory> exp_avg_sq_;
};

// Bytes an element that a pass over the spans moves.
size_t stream_bytes(const StreamSpans& spans);

// Which of stream_loops() streams these spans fastest here; tries them all.
StreamLoop fastest_loop(const StreamSpans& spans, const Repetition& repetition);

// Times of a pass that moves `bytes` an element, as JSON.
nlohmann::ordered_json measured(const Times& times, size_t bytes, int64_t numel);

}  // namespace strata::tools
