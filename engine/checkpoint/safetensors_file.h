// A safetensors file on disk, read and written tensor by tensor, in pieces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "engine/checkpoint/safetensors.h"
#include "io/block_file.h"

namespace strata::safetensors {

// One open file. Any thread may read and write, and so may several processes; what they write at a
// time does not overlap. Moves. Closing loses nothing and makes nothing durable.
class File {
 public:
  // To read. Throws IoError, or CorruptionError for a header that does not fit the file.
  static File open(const std::string& path);
  // To read and write, where another process has created it.
  static File open_to_write(const std::string& path);
  // A new file: its header, and zeros for the data, all reserved, so that no later write meets a
  // full disk. Throws IoError where something is at `path` already, and, saying how much is needed
  // and how much free, where the disk is short; no file is left then.
  static File create(const std::string& path, const Header& header);

  const std::string& path() const { return file_.path(); }
  const Header& header() const { return header_; }
  // Throws ConfigError naming file and tensor where there is none.
  const Tensor& tensor(std::string_view name) const;

  // Bytes of one of header()'s tensors, from its byte `first` on. Throws IoError naming file and
  // offset.
  void read(const Tensor& tensor, uint64_t first, std::span<std::byte> out) const;
  void write(const Tensor& tensor, uint64_t first, std::span<const std::byte> bytes);
  // io::write_back() of what was written so far, by anybody. Throws IoError.
  void write_back();
  // What was written so far, by anybody, is on the disk. Throws IoError.
  void sync();

 private:
  File(io::BlockFile file, Header header);
  static File open(const std::string& path, bool read_only);
  uint64_t offset_of(const Tensor& tensor, uint64_t first, size_t bytes) const;

  io::BlockFile file_;
  Header header_;
};

}  // namespace strata::safetensors
