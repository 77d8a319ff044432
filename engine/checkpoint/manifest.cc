#include "engine/checkpoint/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <concepts>
#include <filesystem>
#include <system_error>
#include <utility>

#include "engine/config/json_text.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

constexpr const char* kFormat = "strata-checkpoint-1";
constexpr size_t kPieceFields = 3;  // first, bytes, hash
constexpr std::array<StateKind, 4> kFileKinds = {StateKind::master, StateKind::exp_avg,
                                                 StateKind::exp_avg_sq, StateKind::frozen};

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

// A count: nlohmann's get() would take a fraction, or wrap what T does not hold.
template <std::integral T>
T count(const Json& json, const std::string& source) {
  const bool is_count =
      json.is_number_unsigned() && std::in_range<T>(json.get_ref<const uint64_t&>());
  if (!is_count) fail(source, fmt::format("{} is no count", describe(json)));
  return json.get<T>();
}

double loss_scale(const Json& json, const std::string& source) {
  if (!json.is_number() || json.get<double>() < 0) {
    fail(source, fmt::format("{} is no loss scale", describe(json)));
  }
  return json.get<double>();
}

// The text of an object that others read; empty for null.
std::string nested_text(const Json& json, const std::string& source) {
  if (json.is_null()) return "";
  if (!json.is_object()) fail(source, fmt::format("{} is no configuration", describe(json)));
  return json.dump();
}

Json nested_json(const std::string& text) {
  return text.empty() ? Json() : Json::parse(text, nullptr, true, /*ignore_comments=*/true);
}

Codec moment_codec(const std::string& text, const std::string& source) {
  for (const Codec codec : {Codec::fp32, Codec::bf16, Codec::int8}) {
    if (text == name(codec)) return codec;
  }
  fail(source, fmt::format("moments cannot be kept as \"{}\"", text));
}

void check_cover(const TensorPieces& tensors, const std::string& source) {
  for (const auto& [tensor, pieces] : tensors) {
    uint64_t end = 0;
    for (const Piece& piece : pieces) {
      if (piece.first != end || piece.bytes == 0 || piece.first + piece.bytes < piece.first) {
        fail(source,
             fmt::format("the pieces of '{}' leave a gap or overlap at byte {}", tensor, end));
      }
      end = piece.first + piece.bytes;
    }
  }
}

TensorPieces pieces_from(const Json& json, const std::string& source) {
  if (!json.is_object()) fail(source, "a file's tensors are malformed");
  TensorPieces tensors;
  for (const auto& [tensor, rows] : json.items()) {
    if (!rows.is_array()) fail(source, "a tensor's pieces are malformed");
    std::vector<Piece>& pieces = tensors[tensor];
    for (const Json& row : rows) {
      if (!row.is_array() || row.size() != kPieceFields) fail(source, "a piece is malformed");
      pieces.push_back({count<uint64_t>(row[0], source), count<uint64_t>(row[1], source),
                        from_hex(row[2].get_ref<const std::string&>(), source)});
    }
  }
  return tensors;
}

// A checkpoint has no others, so that none leads out of its directory.
bool is_file(const std::string& name) {
  return std::any_of(kFileKinds.begin(), kFileKinds.end(),
                     [&](StateKind kind) { return name == checkpoint_file(kind); });
}

Manifest parse(const Json& json, const std::string& source) {
  if (json.value("format", Json()) != kFormat) fail(source, "it has no format of this Strata's");
  Manifest manifest;
  const Json& scaler = json.at("loss_scaler");
  manifest.run = {.step = count<int64_t>(json.at("step"), source),
                  .seed = count<uint64_t>(json.at("seed"), source),
                  .data_position = count<int64_t>(json.at("data_position"), source),
                  .loss_scale = loss_scale(scaler.at("scale"), source),
                  .hysteresis = count<int64_t>(scaler.at("hysteresis"), source),
                  .good_steps = count<int64_t>(scaler.at("good_steps"), source)};
  manifest.model = json.at("model").get<std::string>();
  manifest.model_config = nested_text(json.at("model_config"), source);
  manifest.config = nested_text(json.at("config"), source);
  manifest.moment_codec = moment_codec(json.at("moment_codec").get<std::string>(), source);
  const Json& files = json.at("files");
  if (!files.is_object()) fail(source, "its files are malformed");
  for (const auto& [file, tensors] : files.items()) {
    if (!is_file(file))
      fail(source, fmt::format("{} is no file of a checkpoint", Json(file).dump()));
    TensorPieces& pieces = manifest.pieces[file] = pieces_from(tensors, source);
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
    check_cover(of_file, file);
    Json& tensors = files[file] = Json::object();
    for (const auto& [tensor, pieces] : of_file) {
      Json rows = Json::array();
      for (const Piece& piece : pieces) {
        rows.push_back(Json::array({piece.first, piece.bytes, hex(piece.hash)}));
      }
      tensors[tensor] = std::move(rows);
    }
  }
  const Json json = {{"format", kFormat},
                     {"step", manifest.run.step},
                     {"seed", manifest.run.seed},
                     {"data_position", manifest.run.data_position},
                     {"loss_scaler",
                      {{"scale", manifest.run.loss_scale},
                       {"hysteresis", manifest.run.hysteresis},
                       {"good_steps", manifest.run.good_steps}}},
                     {"model", manifest.model},
                     {"model_config", nested_json(manifest.model_config)},
                     {"config", nested_json(manifest.config)},
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
