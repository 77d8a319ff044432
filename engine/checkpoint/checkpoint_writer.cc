#include "engine/checkpoint/checkpoint_writer.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include "io/durable_file.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

namespace fs = std::filesystem;

// What a rank tells the others of its failure; all zeros: it has none.
using FailureText = std::array<char, 1024>;

void remove_all(const std::string& path) {
  std::error_code ignored;
  fs::remove_all(path, ignored);
}

// Without what would name something inside of it.
std::string without_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

}  // namespace

template <typename Work>
void CheckpointWriter::together(const Work& work) {
  FailureText mine = {};
  try {
    work();
  } catch (const std::exception& error) {
    const std::string text = fmt::format("{} ", error.what());  // never empty
    text.copy(mine.data(), mine.size() - 1);
  }
  std::vector<FailureText> all(static_cast<size_t>(comm_.size()));
  comm_.exchange(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)));
  for (const FailureText& text : all) {
    const std::string_view failure = text.data();
    if (failure.empty()) continue;
    throw SharedIoError(std::string(failure.substr(0, failure.size() - 1)), path_, 0, EIO);
  }
}

CheckpointWriter::CheckpointWriter(const std::string& path, const Contents& contents,
                                   Communicator& comm)
    : comm_(comm), path_(without_slash(path)), unfinished_(path_ + kUnfinishedSuffix) {
  try {
    together([&] {
      if (comm.rank() > 0) return;
      remove_all(unfinished_);
      io::make_directories(unfinished_);
      for (const auto& [file, tensors] : contents) {
        safetensors::File::create(unfinished_ + "/" + file, safetensors::Header(tensors));
      }
    });
    together([&] {
      for (const auto& [file, tensors] : contents) {
        parts_.emplace(file, Part{safetensors::File::open_to_write(unfinished_ + "/" + file), {}});
      }
    });
  } catch (...) {
    if (comm.rank() == 0) remove_all(unfinished_);
    throw;
  }
}

CheckpointWriter::~CheckpointWriter() {
  if (!finished_ && comm_.rank() == 0) remove_all(unfinished_);
}

void CheckpointWriter::write(const std::string& file, const std::string& tensor, uint64_t first,
                             std::span<const std::byte> bytes) {
  if (bytes.empty() || !failure_.empty()) return;
  Part& part = parts_.at(file);
  try {
    const safetensors::Tensor& there = part.file.tensor(tensor);
    part.file.write(there, first, bytes);
    written_bytes_ += bytes.size();
    const auto index = &there - part.file.header().tensors().data();
    part.pieces.push_back({static_cast<uint64_t>(index),
                           {first, bytes.size(), XXH3_64bits(bytes.data(), bytes.size())}});
  } catch (const IoError& error) {
    fail(error.what());
  }
}

template <typename Work>
void CheckpointWriter::on_parts(const Work& work) {
  if (!failure_.empty()) return;
  try {
    for (auto& [name, part] : parts_) work(part.file);
  } catch (const IoError& error) {
    fail(error.what());
  }
}

void CheckpointWriter::write_back() {
  on_parts([](safetensors::File& file) { file.write_back(); });
}

void CheckpointWriter::sync() {
  on_parts([](safetensors::File& file) { file.sync(); });
}

void CheckpointWriter::fail(std::string_view text) {
  if (failure_.empty()) failure_ = text;
}

void CheckpointWriter::finish(Manifest manifest) {
  together([&] {
    sync();
    if (!failure_.empty()) throw IoError(failure_, path_, 0, EIO);
  });
  manifest.pieces.clear();
  for (const auto& [name, part] : parts_) manifest.pieces[name] = all_pieces(name);
  together([&] {
    if (comm_.rank() > 0) return;
    io::write_durably(unfinished_ + "/" + kManifestName, to_json(manifest));
    io::sync_directory(unfinished_);
    std::error_code error;
    if (!fs::exists(path_, error)) return io::rename_durably(unfinished_, path_);
    io::exchange_durably(unfinished_, path_);
    remove_all(unfinished_);
  });
  finished_ = true;
}

TensorPieces CheckpointWriter::all_pieces(const std::string& file) {
  Part& part = parts_.at(file);
  const uint64_t count = part.pieces.size();
  std::vector<uint64_t> counts(static_cast<size_t>(comm_.size()));
  comm_.exchange(std::as_bytes(std::span(&count, 1)), std::as_writable_bytes(std::span(counts)));
  const uint64_t most = *std::max_element(counts.begin(), counts.end());
  part.pieces.resize(most);
  std::vector<TensorPiece> all(most * counts.size());
  comm_.exchange(std::as_bytes(std::span(part.pieces)), std::as_writable_bytes(std::span(all)));
  TensorPieces tensors;
  for (size_t rank = 0; rank < counts.size(); ++rank) {
    for (size_t i = 0; i < counts[rank]; ++i) {
      const auto& [tensor, piece] = all[rank * most + i];
      tensors[part.file.header().tensors().at(tensor).name].push_back(piece);
    }
  }
  for (auto& [name, pieces] : tensors) {
    std::sort(pieces.begin(), pieces.end(),
              [](const Piece& a, const Piece& b) { return a.first < b.first; });
  }
  return tensors;
}

}  // namespace strata::engine
