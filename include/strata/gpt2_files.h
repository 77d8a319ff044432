// GPT-2 as Hugging Face's transformers keeps it: a directory with config.json and
// model.safetensors, or several files with model.safetensors.index.json.
#pragma once

#include <cstdint>
#include <string>

#include "strata/dtype.h"
#include "strata/model.h"
#include "strata/parameter_reader.h"

namespace strata::models {

// The weights that save_pretrained left in `directory`, in fp32, fp16 or bf16, of a GPT2LMHeadModel
// or the GPT2Model within; for Engine::Options::initial_values. Reads from the files what it is
// asked for, and may be called by any thread. Throws ConfigError naming what is missing, unknown or
// of another shape than `config` has, and CorruptionError or IoError for files that are damaged or
// unreadable.
ParameterReader read_gpt2(const std::string& directory, const Gpt2Config& config);

struct Gpt2WriteOptions {
  DType dtype = DType::bf16;            // fp32, or rounded as the model's own parameters are
  uint64_t file_bytes = 5'000'000'000;  // more weights are divided among files of this size
};

// Writes the directory, which must be new or empty, so that GPT2LMHeadModel.from_pretrained opens
// it. Takes the values from `values`, a few megabytes at a time. Throws ConfigError or IoError and
// leaves no file of its own then.
void write_gpt2(const std::string& directory, const Gpt2Config& config,
                const ParameterReader& values, const Gpt2WriteOptions& options = {});

}  // namespace strata::models
