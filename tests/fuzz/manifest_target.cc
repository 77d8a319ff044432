// A checkpoint's manifest. What is accepted is written and read again as the same.
#include "engine/checkpoint/manifest.h"

#include <string>

#include "tests/fuzz/fuzz_target.h"

namespace strata::fuzzing {

void fuzz(std::string_view input) {
  using engine::Manifest;
  const Manifest manifest = engine::manifest_from_json(std::string(input), "manifest.json");
  expect(manifest.run.step >= 0 && manifest.run.data_position >= 0 && manifest.run.loss_scale >= 0,
         "a count below zero");
  const std::string text = to_json(manifest);
  const Manifest again = engine::manifest_from_json(text, "manifest.json");
  expect(again.run == manifest.run && again.pieces == manifest.pieces && to_json(again) == text,
         "a manifest is not read back as written");
}

}  // namespace strata::fuzzing
