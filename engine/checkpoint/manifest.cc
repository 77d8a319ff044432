#include "engine/checkpoint/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <system_error>
#include <tuple>
#include <utility>

#include "engine/config/json_text.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

constexpr const char* kFormat = "strata-checkpoint-1";
constexpr size_t kPieceFields = 4;

[[noreturn]] void fail(const std::string& source, std::string_view what) {
  throw CorruptionError(fmt::format("{}: {}", source, what));
}

std::string hex(uint64_t value) { return fmt::format("{:016x}", value); }

uint64_t from_hex(const std::string& text, const std::string& source) {
  uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value, 16);
  if (parsed.ec != std::errc() || parsed.ptr != end) {
    fail(source, fmt::format("\"{}\" is not a hash", text));
  }
  return value;
}

// A whole number: nlohmann's get() would take a fraction, or wrap a sign.
template <typename T>
T number(const Json& json) {
  if constexpr (std::is_unsigned_v<T>) {
    if (!json.is_number_unsigned()) throw ConfigError("a number is negative or a fraction");
  } else {
    if (!json.is_number_integer()) throw ConfigError("a number is a fraction");
  }
  return json.get<T>();
}

Codec moment_codec(const std::string& text, const std::string& source) {
  for (const Codec codec : {Codec::fp32, Codec::bf16, Codec::int8}) {
    if (text == name(codec)) return codec;
  }
  fail(source, fmt::format("moments cannot be kept as \"{}\"", text));
}

void check_cover(const std::vector<Piece>& pieces, const std::string& source) {
  uint64_t end = 0;
  const std::string* tensor = nullptr;
  for (const Piece& piece : pieces) {
    if (tensor == nullptr || *tensor != piece.tensor) end = 0;
    tensor = &piece.tensor;
    if (piece.first != end || piece.bytes == 0 || piece.first + piece.bytes < piece.first) {
      fail(source,
           fmt::format("the pieces of '{}' leave a gap or overlap at byte {}", piece.tensor, end));
    }
    end = piece.first + piece.bytes;
  }
}

std::vector<Piece> pieces_from(const Json& json, const std::string& source) {
  std::vector<Piece> pieces;
  for (const auto& [tensor, rows] : json.items()) {
    for (const Json& row : rows) {
      if (!row.is_array() || row.size() != kPieceFields - 1) fail(source, "a piece is malformed");
      pieces.push_back({tensor, number<uint64_t>(row[0]), number<uint64_t>(row[1]),
                        from_hex(row[2].get<std::string>(), source)});
    }
  }
  return pieces;
}

Manifest parse(const Json& json, const std::string& source) {
  if (json.value("format", Json()) != kFormat) fail(source, "it has no format of this Strata's");
  Manifest manifest;
  const Json& scaler = json.at("loss_scaler");
  manifest.run = {
      number<int64_t>(json.at("step")),          number<uint64_t>(json.at("seed")),
      number<int64_t>(json.at("data_position")), scaler.at("scale").get<double>(),
      number<int64_t>(scaler.at("hysteresis")),  number<int64_t>(scaler.at("good_steps"))};
  if (manifest.run.step < 0 || manifest.run.data_position < 0) fail(source, "a count is negative");
  manifest.model = json.at("model").get<std::string>();
  manifest.model_config = json.at("model_config").is_null() ? "" : json.at("model_config").dump();
  manifest.config = json.at("config").is_null() ? "" : json.at("config").dump();
  manifest.moment_codec = moment_codec(json.at("moment_codec").get<std::string>(), source);
  for (const auto& [file, tensors] : json.at("files").items()) {
    // Not a way out of the checkpoint's directory.
    if (file.find('/') != std::string::npos) fail(source, "a file's name has a slash");
    std::vector<Piece>& pieces = manifest.pieces[file] = pieces_from(tensors, source);
    check_cover(pieces, source);
  }
  return manifest;
}

}  // namespace

std::string checkpoint_file(StateKind kind) { return fmt::format("{}.safetensors", name(kind)); }

std::string scale_name(const std::string& tensor) { return tensor + ".scale"; }

std::string to_json(const Manifest& manifest) {
  Json files = Json::object();
  for (const auto& [file, of_file] : manifest.pieces) {
    std::vector<Piece> pieces = of_file;
    std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
      return std::tie(a.tensor, a.first) < std::tie(b.tensor, b.first);
    });
    check_cover(pieces, file);
    Json& tensors = files[file] = Json::object();
    for (const Piece& piece : pieces) {
      tensors[piece.tensor].push_back(Json::array({piece.first, piece.bytes, hex(piece.hash)}));
    }
  }
  const auto nested = [](const std::string& text) {
    return text.empty() ? Json() : Json::parse(text, nullptr, true, /*ignore_comments=*/true);
  };
  const Json json = {{"format", kFormat},
                     {"step", manifest.run.step},
                     {"seed", manifest.run.seed},
                     {"data_position", manifest.run.data_position},
                     {"loss_scaler",
                      {{"scale", manifest.run.loss_scale},
                       {"hysteresis", manifest.run.hysteresis},
                       {"good_steps", manifest.run.good_steps}}},
                     {"model", manifest.model},
                     {"model_config", nested(manifest.model_config)},
                     {"config", nested(manifest.config)},
                     {"moment_codec", name(manifest.moment_codec)},
                     {"files", files}};
  return json.dump(1) + "\n";
}

Manifest manifest_from_json(const std::string& text, const std::string& source) {
  try {
    return parse(parse_json_object(text, source), source);
  } catch (const ConfigError& error) {
    throw CorruptionError(error.what());
  } catch (const Json::exception& error) {
    fail(source, fmt::format("it is incomplete or damaged ({})", error.what()));
  }
}

Manifest read_manifest(const std::string& directory) {
  const std::string path = directory + "/" + kManifestName;
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    throw ConfigError(
        fmt::format("'{}' is not a checkpoint: it has no {}", directory, kManifestName));
  }
  return manifest_from_json(read_text_file(path), path);
}

}  // namespace strata::engine
