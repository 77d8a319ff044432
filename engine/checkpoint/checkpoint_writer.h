// Writes a checkpoint, all ranks together.
//
// It grows under another name, and gets its own when every rank's part and the manifest are on the
// disk: whoever is killed meanwhile leaves the checkpoints before as they were. The directory is
// one that all ranks see.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/checkpoint/manifest.h"
#include "engine/checkpoint/safetensors_file.h"
#include "engine/comm/communicator.h"
#include "strata/error.h"

namespace strata::engine {

// A failure that every rank has been told of: the run can go on.
class SharedIoError final : public IoError {
 public:
  using IoError::IoError;
};

class CheckpointWriter {
 public:
  // What goes into each file, by name.
  using Contents = std::map<std::string, std::vector<safetensors::Tensor>>;

  // Collective: rank 0 makes the files, as large as they will be. Throws SharedIoError on every
  // rank where one cannot, naming file and reason; nothing is left then, and the run can go on.
  CheckpointWriter(const std::string& path, const Contents& contents, Communicator& comm);
  // Removes what is unfinished.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // A piece of a tensor, from byte `first` on. Every byte is written once, by any rank. Does
  // nothing after a write has failed. This and the next five are for one thread at a time, the
  // driver's or another.
  void write(const std::string& file, const std::string& tensor, uint64_t first,
             std::span<const std::byte> bytes);
  // Waits until the disk has taken what was written, so that a writer who times himself sees what
  // it costs.
  void write_back();
  // Makes what was written durable, ahead of finish(), which then has little to wait for.
  void sync();
  bool failed() const { return !failure_.empty(); }
  // By write(), so far.
  uint64_t written_bytes() const { return written_bytes_; }
  // finish() fails with this text, if it has no earlier reason.
  void fail(std::string_view text);

  // Collective, after all writes: makes them durable, writes the manifest, with their pieces in
  // place of its own, and gives the checkpoint its name, in place of another one of that name.
  // Throws SharedIoError on every rank where any rank's part failed, as above.
  void finish(Manifest manifest);

 private:
  // Calls `work`, and throws on every rank what it threw on any.
  template <typename Work>
  void together(const Work& work);
  // Calls `work` on each part, unless something has failed.
  template <typename Work>
  void on_parts(const Work& work);
  TensorPieces all_pieces(const std::string& file);

  Communicator& comm_;
  const std::string path_;
  const std::string unfinished_;
  // As pieces travel between ranks.
  struct TensorPiece {
    uint64_t tensor = 0;  // its place in the file's header
    Piece piece;
  };
  struct Part {
    safetensors::File file;
    std::vector<TensorPiece> pieces;
  };
  std::map<std::string, Part> parts_;
  uint64_t written_bytes_ = 0;
  std::string failure_;  // the first, of this rank
  bool finished_ = false;
};

}  // namespace strata::engine
