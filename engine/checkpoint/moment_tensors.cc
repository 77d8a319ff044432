#include "engine/checkpoint/moment_tensors.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

namespace strata::engine {
namespace {

int64_t blocks_of(int64_t numel) { return (numel + kCodecBlockNumel - 1) / kCodecBlockNumel; }

// Copies an int8 part between memory and codes and scales end to end.
template <bool kToMemory>
void move_int8(const MomentPart& part, std::byte* codes, std::byte* scales) {
  const auto move = [](std::byte* memory, std::byte* apart, int64_t bytes) {
    std::memcpy(kToMemory ? memory : apart, kToMemory ? apart : memory, static_cast<size_t>(bytes));
  };
  for (int64_t block = 0; block < blocks_of(part.count); ++block) {
    const int64_t first = block * kCodecBlockNumel;
    const int64_t place = part.at / kCodecBlockNumel + block;
    move(part.stored + int8_codes_at(place), codes + first,
         std::min(kCodecBlockNumel, part.count - first));
    move(part.stored + int8_scale_at(place), scales + block * 4, 4);
  }
}

std::span<std::byte> bytes_at(std::byte* data, int64_t count) {
  return {data, static_cast<size_t>(count)};
}

// Calls visit(tensor, first byte, bytes) for the tensors of a part, int8's in scratch.
template <typename Visit>
void for_tensors(const MomentPart& part, const Visit& visit) {
  if (part.codec == Codec::int8) {
    visit(part.parameter, static_cast<uint64_t>(part.first), bytes_at(part.scratch, part.count));
    visit(scale_name(part.parameter), static_cast<uint64_t>(part.first / kCodecBlockNumel * 4),
          bytes_at(part.scratch + part.count, blocks_of(part.count) * 4));
    return;
  }
  const int64_t element = stored_bytes(part.codec, 1);
  visit(part.parameter, static_cast<uint64_t>(part.first * element),
        bytes_at(part.stored + part.at * element, part.count * element));
}

}  // namespace

std::vector<safetensors::Tensor> moment_tensors(const std::string& name, std::vector<int64_t> shape,
                                                Codec codec) {
  using safetensors::ElementType;
  using safetensors::Tensor;
  int64_t numel = 1;
  for (const int64_t dim : shape) numel *= dim;
  switch (codec) {
    case Codec::bf16:
      return {Tensor{name, ElementType::bf16, std::move(shape)}};
    case Codec::int8:
      return {Tensor{name, ElementType::u8, std::move(shape)},
              Tensor{scale_name(name), ElementType::f32, {blocks_of(numel)}}};
    default:
      return {Tensor{name, ElementType::f32, std::move(shape)}};
  }
}

void write_moments(CheckpointWriter& checkpoint, const MomentPart& part) {
  if (part.codec == Codec::int8) {
    move_int8<false>(part, part.scratch, part.scratch + part.count);
  }
  for_tensors(part, [&](const std::string& tensor, uint64_t first, std::span<std::byte> bytes) {
    checkpoint.write(part.file, tensor, first, bytes);
  });
}

void read_moments(CheckpointReader& checkpoint, const MomentPart& part) {
  for_tensors(part, [&](const std::string& tensor, uint64_t first, std::span<std::byte> bytes) {
    checkpoint.read(part.file, tensor, first, bytes);
  });
  if (part.codec == Codec::int8) {
    move_int8<true>(part, part.scratch, part.scratch + part.count);
  }
}

}  // namespace strata::engine
