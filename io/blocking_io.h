// Reads and writes that block their thread, for what is not on a step's way: files of models and
// checkpoints. Files are open without O_DIRECT (BlockFileOptions). Any thread may call, on one file
// too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "io/block_file.h"

namespace strata::io {

// Fills `out` with a file's bytes from `offset` on. Throws IoError naming file and offset, with
// error number 0 where the file ends before.
void read_fully(const BlockFile& file, uint64_t offset, std::span<std::byte> out);
// Writes all of `bytes`. Throws IoError naming file and offset.
void write_fully(const BlockFile& file, uint64_t offset, std::span<const std::byte> bytes);
// What was written has been sent to the disk, which may still hold it in a cache of its own: for
// whoever wants to keep to a pace. Throws IoError.
void write_back(const BlockFile& file);
// What was written is on the disk, the file's size too. Throws IoError.
void flush(const BlockFile& file);
// A new file with that text, on the disk on return; nothing may exist at `path`. Throws IoError.
void write_new_file(const std::string& path, std::string_view text);

}  // namespace strata::io
