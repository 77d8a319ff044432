// Reads a checkpoint, in pieces of any size, and believes nothing that its manifest's hashes do not
// bear out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "engine/checkpoint/manifest.h"
#include "engine/checkpoint/safetensors_file.h"

namespace strata::engine {

// One thread's.
class CheckpointReader {
 public:
  // Opens all files. Throws ConfigError where there is no checkpoint, IoError for a file that is
  // not there, CorruptionError for one that is not the manifest's.
  explicit CheckpointReader(const std::string& path);

  const std::string& path() const { return path_; }
  const Manifest& manifest() const { return manifest_; }
  bool has(const std::string& file) const { return parts_.contains(file); }
  const safetensors::Header& header(const std::string& file) const;
  // Null: there is none.
  const safetensors::Tensor* find(const std::string& file, const std::string& tensor) const;

  // Bytes of a tensor from `first` on. Throws CorruptionError naming file, offset, expected and
  // found for bytes that are not those written.
  void read(const std::string& file, const std::string& tensor, uint64_t first,
            std::span<std::byte> out);

  // Reads everything; calls `progress` with the bytes of each piece.
  template <typename Progress>
  void verify(const Progress& progress) {
    for (auto& [name, part] : parts_) {
      for (const auto& [tensor, pieces] : part.tensors()) {
        for (const Piece& piece : pieces) {
          load(part, tensor, piece);
          progress(piece.bytes);
        }
      }
    }
  }

 private:
  struct Part {
    safetensors::File file;
    const TensorPieces* of_manifest;
    const TensorPieces& tensors() const { return *of_manifest; }
  };
  // Reads a piece. Throws CorruptionError.
  static void read_piece(const Part& part, const std::string& tensor, const Piece& piece,
                         std::span<std::byte> out);
  // Brings a piece into loaded_.
  void load(const Part& part, const std::string& tensor, const Piece& piece);

  const std::string path_;
  const Manifest manifest_;
  std::map<std::string, Part> parts_;
  const Piece* loaded_piece_ = nullptr;
  std::vector<std::byte> loaded_;
};

}  // namespace strata::engine
