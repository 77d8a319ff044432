#include "kernels/ops/cpu/matmul.h"

#include <omp.h>

#include <oneapi/dnnl/dnnl_debug.h>
#include <array>
#include <cstdlib>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>

#include "kernels/ops/cpu/widened_matmul.h"
#include "strata/error.h"

namespace strata::ops::cpu {
namespace {

using Descriptor = dnnl::memory::desc;

[[noreturn]] void fail(const std::string& doing, const std::string& why) {
  throw DeviceError("oneDNN cannot " + doing + " a matrix product: " + why + ".");
}

dnnl::memory::data_type data_type(DType dtype) {
  switch (dtype) {
    case DType::fp32:
      return dnnl::memory::data_type::f32;
    case DType::bf16:
      return dnnl::memory::data_type::bf16;
    case DType::fp16:
    case DType::int32:
      break;
  }
  fail("prepare", "its dtype is " + std::string(name(dtype)));
}

struct MatrixLayout {
  int64_t rows, columns;
  DType dtype;
  bool transposed = false;  // lies as (columns, rows)

  Descriptor descriptor() const {
    const dnnl::memory::dims strides =
        transposed ? dnnl::memory::dims{1, rows} : dnnl::memory::dims{columns, 1};
    return {{rows, columns}, data_type(dtype), strides};
  }
};

// oneDNN cuts a product for the number of threads that OpenMP has when it is prepared.
class OpenMpThreads {
 public:
  explicit OpenMpThreads(bool alone) : outer_(omp_get_max_threads()) {
    if (alone) omp_set_num_threads(1);
  }
  ~OpenMpThreads() { omp_set_num_threads(outer_); }
  OpenMpThreads(const OpenMpThreads&) = delete;
  OpenMpThreads& operator=(const OpenMpThreads&) = delete;

 private:
  const int outer_;
};

dnnl::primitive_attr attributes(const MatmulSpec& spec, const Descriptor& out) {
  dnnl::post_ops post_ops;
  if (spec.accumulate) post_ops.append_sum(1.0f);
  if (spec.add_residual) post_ops.append_binary(dnnl::algorithm::binary_add, out);
  dnnl::primitive_attr attr;
  attr.set_post_ops(post_ops);
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attr;
}

dnnl::matmul::primitive_desc describe(const MatmulSpec& spec, const dnnl::engine& engine) {
  const Descriptor a = MatrixLayout{spec.m, spec.k, spec.dtype, spec.transpose_a}.descriptor();
  const Descriptor b = MatrixLayout{spec.k, spec.n, spec.dtype, spec.transpose_b}.descriptor();
  const Descriptor out = MatrixLayout{spec.m, spec.n, spec.out_dtype}.descriptor();
  const Descriptor bias = MatrixLayout{1, spec.n, spec.dtype}.descriptor();
  const dnnl::matmul::desc product =
      spec.add_bias ? dnnl::matmul::desc(a, b, bias, out) : dnnl::matmul::desc(a, b, out);
  return {product, attributes(spec, out), engine};
}

// A prepared product; oneDNN's objects for its arguments are made beforehand, a set a slot.
class OneDnnMatmul final : public Matmul {
 public:
  OneDnnMatmul(const MatmulSpec& spec, const dnnl::engine& engine, int slots)
      : OneDnnMatmul(spec, describe(spec, engine), engine, slots) {}

  size_t scratch_bytes() const override { return scratch_bytes_; }

  void run(const MatmulBuffers& buffers, int slot) override {
    Slot& at = slots_[static_cast<size_t>(slot)];
    const std::array<const void*, kArguments> data = {
        buffers.a, buffers.b, buffers.out, buffers.scratch, buffers.bias, buffers.residual};
    std::array<dnnl_exec_arg_t, kArguments> arguments;
    int count = 0;
    for (size_t i = 0; i < kArguments; ++i) {
      if (!at.memory[i]) continue;
      check(dnnl_memory_set_data_handle(at.memory[i].get(), const_cast<void*>(data[i])));
      arguments[static_cast<size_t>(count++)] = {ids_[i], at.memory[i].get()};
    }
    check(dnnl_primitive_execute(primitive_.get(), at.stream.get(), count, arguments.data()));
  }

 private:
  static constexpr size_t kArguments = 6;

  struct Slot {
    dnnl::stream stream;
    std::array<dnnl::memory, kArguments> memory;  // empty: not an argument of this product
  };

  OneDnnMatmul(const MatmulSpec& spec, const dnnl::matmul::primitive_desc& desc,
               const dnnl::engine& engine, int slots)
      : primitive_(desc),
        scratch_bytes_(desc.scratchpad_desc().get_size()),
        ids_{DNNL_ARG_SRC,
             DNNL_ARG_WEIGHTS,
             DNNL_ARG_DST,
             DNNL_ARG_SCRATCHPAD,
             DNNL_ARG_BIAS,
             DNNL_ARG_ATTR_MULTIPLE_POST_OP(spec.accumulate ? 1 : 0) | DNNL_ARG_SRC_1} {
    const auto memory = [&](bool wanted, const Descriptor& descriptor) {
      return wanted ? dnnl::memory(descriptor, engine, nullptr) : dnnl::memory();
    };
    for (int i = 0; i < slots; ++i) {
      slots_.push_back(
          {dnnl::stream(engine),
           {memory(true, desc.src_desc()), memory(true, desc.weights_desc()),
            memory(true, desc.dst_desc()), memory(scratch_bytes_ > 0, desc.scratchpad_desc()),
            memory(spec.add_bias, desc.bias_desc()), memory(spec.add_residual, desc.dst_desc())}});
    }
  }

  static void check(dnnl_status_t status) {
    if (status != dnnl_success) fail("compute", dnnl_status2str(status));
  }

  dnnl::matmul primitive_;
  size_t scratch_bytes_;
  std::array<int, kArguments> ids_;
  std::vector<Slot> slots_;
};

// Products are prepared one at a time in the process: oneDNN keeps one cache of what it prepared,
// and ranks that are threads would share its entries unseen.
std::mutex preparing_mutex;

// Calls make() as the product wants to be prepared.
template <typename Make>
auto preparing(const MatmulSpec& spec, const Make& make) {
  const std::lock_guard lock(preparing_mutex);
  const OpenMpThreads threads(spec.alone);
  try {
    return make();
  } catch (const dnnl::error& error) {
    fail("prepare", error.message);
  }
}

}  // namespace

struct MatmulCache::Library {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  int slots = 1;
  bool has_bf16 = false;

  // oneDNN multiplies bf16 where the CPU has AVX-512, and refuses elsewhere.
  bool multiplies_bf16() const {
    const MatmulSpec smallest = {.m = 1, .k = 1, .n = 1, .dtype = DType::bf16};
    try {
      preparing(smallest, [&] { return describe(smallest, engine); });
      return true;
    } catch (const DeviceError&) {
      return false;
    }
  }
  // oneDNN 2 has no fp16 products for CPUs.
  bool widens(const MatmulSpec& spec) const {
    return spec.dtype == DType::fp16 || (spec.dtype == DType::bf16 && !has_bf16);
  }

  std::unique_ptr<Matmul> make(const MatmulSpec& spec) const {
    return preparing(
        spec, [&] { return std::make_unique<OneDnnMatmul>(spec, engine, spec.alone ? slots : 1); });
  }
  size_t scratch_bytes(const MatmulSpec& spec) const {
    return preparing(spec, [&] { return describe(spec, engine).scratchpad_desc().get_size(); });
  }
};

MatmulCache::MatmulCache(int slots) : library_(std::make_unique<Library>()) {
  library_->slots = slots;
  library_->has_bf16 = library_->multiplies_bf16();
}

MatmulCache::~MatmulCache() = default;

Matmul& MatmulCache::get(const MatmulSpec& spec) {
  const auto found = matmuls_.find(spec);
  if (found != matmuls_.end()) return *found->second;
  std::unique_ptr<Matmul> made;
  if (library_->widens(spec)) {
    made = std::make_unique<WidenedMatmul>(spec, library_->make(WidenedMatmul::fp32_spec(spec)));
  } else {
    made = library_->make(spec);
  }
  return *matmuls_.emplace(spec, std::move(made)).first->second;
}

size_t MatmulCache::scratch_bytes(const MatmulSpec& spec) const {
  if (!library_->widens(spec)) return library_->scratch_bytes(spec);
  return WidenedMatmul::scratch_bytes(spec,
                                      library_->scratch_bytes(WidenedMatmul::fp32_spec(spec)));
}

DType MatmulCache::product_dtype(DType dtype) const {
  return library_->widens({.dtype = dtype}) ? DType::fp32 : dtype;
}

}  // namespace strata::ops::cpu
