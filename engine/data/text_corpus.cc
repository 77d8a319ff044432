#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <set>
#include <string_view>
#include <system_error>
#include <unordered_map>

#include "strata/error.h"
#include "strata/text_corpus.h"

namespace strata {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kHeldOutPart = 10;  // one tenth

// The regular files under a directory, symbolic links followed, each directory entered once.
std::vector<fs::path> files_under(const fs::path& directory) {
  std::vector<fs::path> files;
  std::set<fs::path> entered = {fs::canonical(directory)};
  constexpr auto kOptions = fs::directory_options::follow_directory_symlink;
  fs::recursive_directory_iterator entry(directory, kOptions);
  for (; entry != fs::recursive_directory_iterator(); ++entry) {
    std::error_code broken_link;
    if (entry->is_regular_file(broken_link)) files.push_back(entry->path());
    if (entry->is_directory(broken_link) && !entered.insert(fs::canonical(entry->path())).second) {
      entry.disable_recursion_pending();
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<fs::path> files_at(const std::string& path) {
  try {
    if (!fs::exists(path)) {
      throw ConfigError(path + ": there is no such file or directory: name text files to train on");
    }
    return fs::is_directory(path) ? files_under(path) : std::vector<fs::path>{path};
  } catch (const fs::filesystem_error& error) {
    throw ConfigError(fmt::format("{}: cannot be read ({}): make it readable, or name another path",
                                  error.path1().empty() ? path : error.path1().string(),
                                  error.code().message()));
  }
}

std::string contents(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file.is_open() || file.bad()) {
    throw ConfigError(
        fmt::format("{}: cannot be read: make it readable, or move it away", path.string()));
  }
  return text;
}

// Joins texts, each once.
class Joiner {
 public:
  // False when the same text is there already.
  bool add(const std::string& text) {
    const size_t hash = std::hash<std::string_view>{}(text);
    const auto [first, last] = known_.equal_range(hash);
    for (auto it = first; it != last; ++it) {
      if (std::string_view(joined_).substr(it->second.begin, it->second.size) == text) return false;
    }
    if (!known_.empty()) joined_ += '\n';
    known_.emplace(hash, Piece{joined_.size(), text.size()});
    joined_ += text;
    return true;
  }

  const std::string& joined() const { return joined_; }

 private:
  struct Piece {
    size_t begin, size;
  };
  std::string joined_;
  std::unordered_multimap<size_t, Piece> known_;
};

}  // namespace

TextCorpus TextCorpus::from_path(const std::string& path, int64_t sequence) {
  TextCorpus corpus;
  Joiner joiner;
  for (const fs::path& file : files_at(path)) {
    const std::string text = contents(file);
    if (text.empty()) continue;
    ++(joiner.add(text) ? corpus.files_ : corpus.duplicates_);
  }
  const std::string& joined = joiner.joined();
  const auto total = static_cast<int64_t>(joined.size());
  const int64_t needed = kHeldOutPart * (sequence + 1);
  if (total < needed) {
    throw ConfigError(
        fmt::format("{}: {} bytes of text are too few for sequences of {} tokens with a tenth held "
                    "out: give at "
                    "least {} bytes, or a shorter sequence",
                    path, total, sequence, needed));
  }
  const auto split = joined.begin() + (total - total / kHeldOutPart);
  corpus.train_.assign(joined.begin(), split);
  corpus.validation_.assign(split, joined.end());
  return corpus;
}

uint64_t TextCorpus::hash() const {
  const uint64_t seed = XXH3_64bits(validation_.data(), validation_.size());
  return XXH3_64bits_withSeed(train_.data(), train_.size(), seed);
}

std::vector<OwnedBatch> validation_batches(const TextCorpus& corpus, BatchShape shape,
                                           const World& world) {
  const std::vector<uint8_t>& bytes = corpus.validation();
  const int64_t windows = (static_cast<int64_t>(bytes.size()) - 1) / shape.sequence;
  const int64_t rows_a_turn = world.size * shape.batch;
  std::vector<OwnedBatch> batches;
  for (int64_t turn = 0; turn < windows; turn += rows_a_turn) {
    OwnedBatch& batch = batches.emplace_back(OwnedBatch::empty(shape));
    const int64_t first = turn + world.rank * shape.batch;
    for (int64_t row = 0; row < shape.batch && first + row < windows; ++row) {
      batch.set_row(row, bytes.data() + (first + row) * shape.sequence);
    }
  }
  return batches;
}

}  // namespace strata
