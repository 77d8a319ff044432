#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "engine/checkpoint/gpt2_tensors.h"
#include "engine/checkpoint/safetensors_file.h"
#include "engine/config/json_text.h"
#include "io/blocking_io.h"
#include "kernels/ops/optimizer_ops.h"
#include "strata/error.h"
#include "strata/gpt2_files.h"

namespace strata::models {
namespace {

namespace fs = std::filesystem;

// Files made so far, removed again unless all goes well.
class NewDirectory {
 public:
  explicit NewDirectory(const std::string& path) : path_(path) {
    std::error_code error;
    is_new_ = fs::create_directories(path_, error);
    if (error) {
      throw ConfigError(fmt::format("{}: no such directory can be made ({}): name another", path,
                                    error.message()));
    }
    if (!fs::is_empty(path_, error)) {
      throw ConfigError(fmt::format("{}: it is not empty: name a new directory", path));
    }
  }
  ~NewDirectory() {
    std::error_code ignored;
    if (keeps_) return;
    for (const fs::path& file : files_) fs::remove(file, ignored);
    if (is_new_) fs::remove(path_, ignored);
  }
  NewDirectory(const NewDirectory&) = delete;
  NewDirectory& operator=(const NewDirectory&) = delete;

  std::string add(std::string_view name) { return files_.emplace_back(path_ / name).string(); }
  void keep() { keeps_ = true; }

 private:
  const fs::path path_;
  bool is_new_ = false;
  bool keeps_ = false;
  std::vector<fs::path> files_;
};

// With what transformers wants to know beside the model.
std::string config_text(const Gpt2Config& config, DType dtype) {
  constexpr std::array<std::string_view, 3> kTorchNames = {"float32", "bfloat16", "float16"};
  Json json;
  json["architectures"] = {"GPT2LMHeadModel"};
  json.update(Json::parse(config.to_json()));
  json["tie_word_embeddings"] = true;
  json["bos_token_id"] = nullptr;  // their defaults are above a small vocabulary
  json["eos_token_id"] = nullptr;
  json["torch_dtype"] = kTorchNames[static_cast<size_t>(dtype)];
  return json.dump(2) + "\n";
}

safetensors::Tensor tensor_of(const Parameter& parameter, DType dtype) {
  const auto& dims = parameter.shape.dims;
  return {parameter.name, safetensors::element_type(dtype),
          std::vector<int64_t>(dims.begin(), dims.begin() + parameter.shape.rank)};
}

// In order, as many a file as fit; one that is larger than a file by itself.
std::vector<std::vector<Parameter>> divide(std::vector<Parameter> parameters,
                                           const Gpt2WriteOptions& options) {
  std::vector<std::vector<Parameter>> files;
  uint64_t used = 0;
  for (Parameter& parameter : parameters) {
    const uint64_t bytes =
        static_cast<uint64_t>(parameter.shape.numel()) * size_bytes(options.dtype);
    if (files.empty() || bytes > options.file_bytes - std::min(used, options.file_bytes)) {
      files.emplace_back();
      used = 0;
    }
    files.back().push_back(std::move(parameter));
    used += bytes;
  }
  return files;
}

// 65504 is the largest of fp16; from halfway to the next power of two on, rounding gives infinity.
void check_range(const std::string& name, std::span<const float> values) {
  constexpr float kRoundsToInfinity = 65520;
  const auto at = std::find_if(values.begin(), values.end(), [](float value) {
    return std::isfinite(value) && std::abs(value) >= kRoundsToInfinity;
  });
  if (at == values.end()) return;
  throw ConfigError(fmt::format(
      "'{}' has the value {}, which fp16 does not hold: write bf16 or fp32", name, *at));
}

void write_values(safetensors::File& file, const Parameter& parameter,
                  const ParameterReader& values, DType dtype) {
  constexpr int64_t kChunkNumel = 1 << 20;
  const safetensors::Tensor& tensor = file.tensor(parameter.name);
  const auto most = static_cast<size_t>(std::min(kChunkNumel, tensor.numel()));
  std::vector<float> chunk(most);
  std::vector<std::byte> cast(most * size_bytes(dtype));
  for (int64_t at = 0; at < tensor.numel(); at += kChunkNumel) {
    const int64_t count = std::min(kChunkNumel, tensor.numel() - at);
    const auto part = std::span(chunk).first(static_cast<size_t>(count));
    values(parameter.name, at, part);
    if (dtype == DType::fp16) check_range(parameter.name, part);
    ops::cast(cast.data(), dtype, part.data(), DType::fp32, count);
    file.write(tensor, static_cast<uint64_t>(at) * size_bytes(dtype),
               std::span(cast).first(part.size() * size_bytes(dtype)));
  }
}

void write_file(const std::string& path, const std::vector<Parameter>& parameters,
                const ParameterReader& values, DType dtype) {
  std::vector<safetensors::Tensor> tensors;
  for (const Parameter& parameter : parameters) tensors.push_back(tensor_of(parameter, dtype));
  // transformers opens no file that does not say whose it is.
  const safetensors::Header header(std::move(tensors), {{"format", "pt"}});
  safetensors::File file = safetensors::File::create(path, header);
  for (const Parameter& parameter : parameters) write_values(file, parameter, values, dtype);
  file.sync();
}

std::string file_name(size_t index, size_t files) {
  return files == 1 ? std::string(kWeightsFile)
                    : fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, files);
}

std::string index_text(const std::vector<std::vector<Parameter>>& files, DType dtype) {
  int64_t numel = 0;
  Json weight_map = Json::object();
  for (size_t i = 0; i < files.size(); ++i) {
    for (const Parameter& parameter : files[i]) {
      weight_map[parameter.name] = file_name(i, files.size());
      numel += parameter.shape.numel();
    }
  }
  Json index;
  index["metadata"]["total_size"] = static_cast<uint64_t>(numel) * size_bytes(dtype);
  index["weight_map"] = std::move(weight_map);
  return index.dump(2) + "\n";
}

}  // namespace

void write_gpt2(const std::string& directory, const Gpt2Config& config,
                const ParameterReader& values, const Gpt2WriteOptions& options) {
  if (options.dtype == DType::int32) {
    throw ConfigError("weights are written in fp32, bf16 or fp16, not in int32");
  }
  NewDirectory target(directory);
  const auto files = divide(gpt2_parameters(config), options);
  for (size_t i = 0; i < files.size(); ++i) {
    write_file(target.add(file_name(i, files.size())), files[i], values, options.dtype);
  }
  if (files.size() > 1) {
    io::write_new_file(target.add(kIndexFile), index_text(files, options.dtype));
  }
  io::write_new_file(target.add(kConfigFile), config_text(config, options.dtype));
  target.keep();
}

}  // namespace strata::models
