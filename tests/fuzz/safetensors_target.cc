// A whole safetensors file. What is accepted is written out and read again as the same.
#include <algorithm>
#include <span>
#include <string>

#include "engine/checkpoint/safetensors.h"
#include "tests/fuzz/fuzz_target.h"

namespace strata::fuzzing {
namespace {

using safetensors::Header;
using safetensors::Tensor;

bool is_same(const Tensor& a, const Tensor* b) {
  return b != nullptr && a.type == b->type && a.shape == b->shape && a.bytes == b->bytes;
}

}  // namespace

void fuzz(std::string_view input) {
  const Header header =
      Header::parse(std::as_bytes(std::span(input)), input.size(), "x.safetensors");
  for (const Tensor& tensor : header.tensors()) {
    expect(tensor.begin + tensor.bytes <= input.size() - header.data_begin(),
           "a tensor outside of its file");
  }
  const Header again(header.tensors(), header.metadata());
  const std::string start = again.serialize();
  const Header back =
      Header::parse(std::as_bytes(std::span(start)), again.file_bytes(), "x.safetensors");
  expect(back.metadata() == header.metadata() && back.tensors().size() == header.tensors().size(),
         "a header is not read back as written");
  for (const Tensor& tensor : header.tensors()) {
    expect(is_same(tensor, back.find(tensor.name)), "a tensor is not read back as written");
  }
}

}  // namespace strata::fuzzing
