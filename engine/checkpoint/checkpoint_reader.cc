#include "engine/checkpoint/checkpoint_reader.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "strata/error.h"

namespace strata::engine {
namespace {

// Pieces are read at once.
constexpr uint64_t kMostPieceBytes = uint64_t{64} << 20;

void check_tensors(const safetensors::File& file, const TensorPieces& tensors) {
  uint64_t bytes = 0;
  for (const auto& [name, pieces] : tensors) {
    const safetensors::Tensor* const tensor = file.header().find(name);
    for (const Piece& piece : pieces) {
      if (tensor == nullptr || piece.first + piece.bytes > tensor->bytes ||
          piece.bytes > kMostPieceBytes) {
        throw CorruptionError(
            fmt::format("'{}' has no bytes {} to {} of '{}', which its manifest "
                        "names: one of the two is of another checkpoint",
                        file.path(), piece.first, piece.first + piece.bytes, name));
      }
      bytes += piece.bytes;
    }
  }
  uint64_t there = 0;
  for (const safetensors::Tensor& tensor : file.header().tensors()) there += tensor.bytes;
  if (there == bytes) return;
  throw CorruptionError(
      fmt::format("'{}' has {} bytes of tensors and its manifest {}", file.path(), there, bytes));
}

}  // namespace

CheckpointReader::CheckpointReader(const std::string& path)
    : path_(path), manifest_(read_manifest(path)) {
  for (const auto& [name, pieces] : manifest_.pieces) {
    safetensors::File file = safetensors::File::open(path_ + "/" + name);
    check_tensors(file, pieces);
    parts_.emplace(name, Part{std::move(file), &pieces});
  }
}

const safetensors::Header& CheckpointReader::header(const std::string& file) const {
  return parts_.at(file).file.header();
}

const safetensors::Tensor* CheckpointReader::find(const std::string& file,
                                                  const std::string& tensor) const {
  const auto part = parts_.find(file);
  return part == parts_.end() ? nullptr : part->second.file.header().find(tensor);
}

void CheckpointReader::read(const std::string& file, const std::string& tensor, uint64_t first,
                            std::span<std::byte> out) {
  const Part& part = parts_.at(file);
  const std::vector<Piece>& pieces = part.tensors().at(tensor);
  // The last piece that begins at `first` or before.
  auto piece = std::upper_bound(pieces.begin(), pieces.end(), first,
                                [](uint64_t at, const Piece& p) { return at < p.first; });
  require(piece != pieces.begin(), "a checkpoint is read where it has nothing");
  for (--piece; !out.empty(); ++piece) {
    require(piece != pieces.end() && first - piece->first < piece->bytes,
            "a checkpoint is read where it has nothing");
    const uint64_t begin = first - piece->first;
    const uint64_t count = std::min<uint64_t>(out.size(), piece->bytes - begin);
    if (count == piece->bytes) {
      read_piece(part, tensor, *piece, out.first(count));
    } else {
      load(part, tensor, *piece);
      std::memcpy(out.data(), loaded_.data() + begin, count);
    }
    first += count;
    out = out.subspan(count);
  }
}

void CheckpointReader::load(const Part& part, const std::string& tensor, const Piece& piece) {
  if (loaded_piece_ == &piece) return;
  loaded_piece_ = nullptr;
  loaded_.resize(piece.bytes);
  read_piece(part, tensor, piece, loaded_);
  loaded_piece_ = &piece;
}

void CheckpointReader::read_piece(const Part& part, const std::string& tensor, const Piece& piece,
                                  std::span<std::byte> out) {
  const safetensors::Header& header = part.file.header();
  const safetensors::Tensor& there = *header.find(tensor);
  part.file.read(there, piece.first, out);
  const uint64_t found = XXH3_64bits(out.data(), out.size());
  if (found == piece.hash) return;
  throw CorruptionError(
      fmt::format("'{}' at byte {}: {} bytes of '{}' have hash {:016x} where {:016x} was written",
                  part.file.path(), header.data_begin() + there.begin + piece.first, piece.bytes,
                  tensor, found, piece.hash));
}

}  // namespace strata::engine
