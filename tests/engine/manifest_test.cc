// What a manifest may not say, whoever wrote it.
#include "engine/checkpoint/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "strata/error.h"

namespace strata::engine {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

Manifest small_manifest() {
  Manifest manifest;
  manifest.run = {3, 7, 96, 65536, 2, 1};
  manifest.model = "a model";
  manifest.model_config = R"({"n_layer":2})";
  manifest.moment_codec = Codec::int8;
  manifest.pieces["master.safetensors"] = {{"a", {{0, 8, 1}, {8, 4, 2}}}, {"b", {{0, 4, 3}}}};
  return manifest;
}

void expect_damaged(const std::string& says, const std::function<void(json&)>& change) {
  json written = json::parse(to_json(small_manifest()));
  change(written);
  EXPECT_THAT([&] { manifest_from_json(written.dump(), "its manifest"); },
              ThrowsMessage<CorruptionError>(AllOf(HasSubstr("its manifest"), HasSubstr(says))));
}

TEST(ManifestTest, IsReadBackAsWritten) {
  const Manifest manifest = small_manifest();
  const Manifest back = manifest_from_json(to_json(manifest), "manifest.json");
  EXPECT_EQ(back.run, manifest.run);
  EXPECT_EQ(back.model, manifest.model);
  EXPECT_EQ(back.model_config, manifest.model_config);
  EXPECT_EQ(back.config, "");
  EXPECT_EQ(back.moment_codec, Codec::int8);
  EXPECT_EQ(back.pieces, manifest.pieces);
}

TEST(ManifestTest, CountsFitWhatTheyCount) {
  for (const char* key : {"step", "data_position"}) {
    expect_damaged("is no count", [&](json& m) { m[key] = -1; });
    expect_damaged("18446744073709551615 is no count", [&](json& m) { m[key] = UINT64_MAX; });
    expect_damaged("1.5 is no count", [&](json& m) { m[key] = 1.5; });
    expect_damaged("is no count", [&](json& m) { m[key] = "3"; });
  }
  for (const char* key : {"hysteresis", "good_steps"}) {
    expect_damaged("is no count", [&](json& m) { m["loss_scaler"][key] = -1; });
  }
  expect_damaged("is no loss scale", [](json& m) { m["loss_scaler"]["scale"] = -0.5; });
  // As JSON has NaN.
  expect_damaged("null is no loss scale", [](json& m) { m["loss_scaler"]["scale"] = nullptr; });
  expect_damaged("incomplete or damaged", [](json& m) { m["loss_scaler"] = 3; });
}

TEST(ManifestTest, EachThingIsOfItsType) {
  expect_damaged("files are malformed", [](json& m) { m["files"] = json::array(); });
  expect_damaged("tensors are malformed", [](json& m) { m["files"]["master.safetensors"] = 4; });
  expect_damaged("pieces are malformed", [](json& m) {
    m["files"]["master.safetensors"]["a"] = {{"x", {0, 1, "0"}}};
  });
  expect_damaged("a piece is malformed", [](json& m) {
    m["files"]["master.safetensors"]["a"] = {{0, 1}};
  });
  expect_damaged("incomplete or damaged",
                 [](json& m) { m["files"]["master.safetensors"]["a"][0][2] = 5; });
  expect_damaged("is not a hash",
                 [](json& m) { m["files"]["master.safetensors"]["a"][0][2] = "0x1"; });
  for (const char* key : {"config", "model_config"}) {
    expect_damaged("\"text\" is no configuration", [&](json& m) { m[key] = "text"; });
  }
  expect_damaged("cannot be kept as \"split16\"", [](json& m) { m["moment_codec"] = "split16"; });
}

TEST(ManifestTest, PiecesAreAllOfATensor) {
  const auto pieces = [](json rows) {
    return [rows](json& m) { m["files"]["master.safetensors"]["a"] = rows; };
  };
  const std::string gap = "the pieces of 'a' leave a gap or overlap at byte ";
  expect_damaged(gap + "8", pieces({{0, 8, "0"}, {9, 4, "0"}}));
  expect_damaged(gap + "8", pieces({{0, 8, "0"}, {7, 4, "0"}}));
  expect_damaged(gap + "0", pieces({{0, 0, "0"}}));
  expect_damaged(
      gap + "9223372036854775808",
      pieces({{0, uint64_t{1} << 63, "0"}, {uint64_t{1} << 63, uint64_t{1} << 63, "0"}}));
}

TEST(ManifestTest, FilesAreACheckpoints) {
  for (const char* file : {"..", "../master.safetensors", "", "manifest.json"}) {
    expect_damaged("is no file of a checkpoint",
                   [&](json& m) { m["files"][file] = json::object(); });
  }
  const std::string cut("master.safetensors\0", 19);
  expect_damaged("is no file of a checkpoint", [&](json& m) { m["files"][cut] = json::object(); });
}

}  // namespace
}  // namespace strata::engine
