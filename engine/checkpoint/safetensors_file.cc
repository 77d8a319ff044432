#include "engine/checkpoint/safetensors_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "io/blocking_io.h"
#include "strata/error.h"
#include "strata/log.h"

namespace strata::safetensors {

File::File(io::BlockFile file, Header header)
    : file_(std::move(file)), header_(std::move(header)) {}

File File::open(const std::string& path, bool read_only) {
  NullLogSink silent;
  io::BlockFile file =
      io::BlockFile::open(path, {.direct = io::DirectMode::off, .read_only = read_only}, silent);
  std::array<std::byte, sizeof(uint64_t)> length = {};
  io::read_fully(file, 0, std::span(length).first(std::min(length.size(), file.bytes())));
  std::vector<std::byte> start(Header::data_begin(length, file.bytes(), path));
  io::read_fully(file, 0, start);
  Header header = Header::parse(start, file.bytes(), path);
  return File(std::move(file), std::move(header));
}

File File::open(const std::string& path) { return open(path, /*read_only=*/true); }
File File::open_to_write(const std::string& path) { return open(path, /*read_only=*/false); }

File File::create(const std::string& path, const Header& header) {
  NullLogSink silent;
  File file(
      io::BlockFile::create(path, header.file_bytes(), {.direct = io::DirectMode::off}, silent),
      header);
  try {
    const std::string start = header.serialize();
    io::write_fully(file.file_, 0, std::as_bytes(std::span(start)));
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
    throw;
  }
  return file;
}

const Tensor& File::tensor(std::string_view name) const {
  const Tensor* tensor = header_.find(name);
  if (tensor == nullptr) {
    throw ConfigError(fmt::format("{}: it has no tensor '{}'", path(), name));
  }
  return *tensor;
}

uint64_t File::offset_of(const Tensor& tensor, uint64_t first, size_t bytes) const {
  require(first <= tensor.bytes && bytes <= tensor.bytes - first,
          fmt::format("{}: bytes {} to {} are not in '{}', which has {}", path(), first,
                      first + bytes, tensor.name, tensor.bytes));
  return header_.data_begin() + tensor.begin + first;
}

void File::read(const Tensor& tensor, uint64_t first, std::span<std::byte> out) const {
  io::read_fully(file_, offset_of(tensor, first, out.size()), out);
}

void File::write(const Tensor& tensor, uint64_t first, std::span<const std::byte> bytes) {
  io::write_fully(file_, offset_of(tensor, first, bytes.size()), bytes);
}

void File::write_back() { io::write_back(file_); }

void File::sync() { io::flush(file_); }

}  // namespace strata::safetensors
