#include "tests/house/include_arrows.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <stdexcept>

namespace strata::house {
namespace {

namespace fs = std::filesystem;

// A room's files and headers both start with its name, once "include/" is taken off.
struct Room {
  std::string_view name;
  std::array<std::string_view, 2> below;  // the rooms its arrows point to
};

constexpr std::array<Room, 8> kRooms = {{
    {"strata/", {}},
    {"io/", {"strata/"}},
    {"kernels/device/", {"strata/"}},
    {"kernels/ops/", {"kernels/device/"}},
    {"offload/", {"io/", "kernels/device/"}},
    {"engine/", {"offload/", "kernels/ops/"}},
    {"tools/", {"engine/"}},
    {"tests/", {"tools/"}},
}};

constexpr std::array<std::string_view, 7> kFolders = {"include", "io",    "kernels", "offload",
                                                      "engine",  "tools", "tests"};

// Libraries whose headers are spelled with quotes.
constexpr std::array<std::string_view, 1> kQuotedLibraries = {"hwy/"};

// What no user of include/strata should need installed.
constexpr std::array<std::string_view, 9> kBackends = {
    "cuda", "cublas", "nccl", "mpi", "dnnl", "tbb/", "oneapi/", "liburing", "hwloc"};

template <size_t N>
bool starts_with_any(std::string_view text, const std::array<std::string_view, N>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](std::string_view prefix) { return text.starts_with(prefix); });
}

const Room* room_of(std::string_view path) {
  const auto room = std::find_if(kRooms.begin(), kRooms.end(),
                                 [&](const Room& r) { return path.starts_with(r.name); });
  return room == kRooms.end() ? nullptr : &*room;
}

bool may_include(const Room& from, const Room& to) {
  return &from == &to ||
         std::any_of(from.below.begin(), from.below.end(), [&](std::string_view name) {
           return !name.empty() && may_include(*room_of(name), to);
         });
}

std::string read_text(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in) throw std::runtime_error("cannot read " + path.string());
  return text;
}

bool is_source(const fs::path& path) {
  static const std::set<fs::path> extensions = {".h", ".cc", ".cu", ".cuh"};
  return extensions.contains(path.extension());
}

}  // namespace

std::vector<Include> find_includes(std::string_view source) {
  static const std::regex directive(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"].*)");
  std::vector<Include> includes;
  for (int line = 1; !source.empty(); ++line) {
    const size_t end = std::min(source.find('\n'), source.size());
    std::cmatch match;
    if (std::regex_match(source.data(), source.data() + end, match, directive)) {
      includes.push_back({.line = line, .header = match[2], .quoted = match[1] == "\""});
    }
    source.remove_prefix(std::min(end + 1, source.size()));
  }
  return includes;
}

std::string wrong_arrow(std::string_view file, const Include& include) {
  constexpr std::string_view kPublic = "include/";
  if (file.starts_with(kPublic)) file.remove_prefix(kPublic.size());
  const Room* from = room_of(file);
  if (from == nullptr) return "lies in no folder of the house";

  const std::string& header = include.header;
  if (header.find("..") != std::string::npos) return header + " is not named from the root";
  if (const Room* to = room_of(header)) {
    if (may_include(*from, *to)) return "";
    return std::string(from->name) + " must not include " + header;
  }
  if (include.quoted && !starts_with_any(header, kQuotedLibraries)) {
    return header + " is not named from the root";
  }
  if (from->name == "strata/" && starts_with_any(header, kBackends)) {
    return "public headers must not include " + header;
  }
  return "";
}

Inspection inspect_includes(const fs::path& root) {
  Inspection inspection;
  for (const std::string_view folder : kFolders) {
    if (!fs::is_directory(root / folder)) {
      throw std::runtime_error("no folder " + (root / folder).string());
    }
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(root / folder)) {
      if (!entry.is_regular_file() || !is_source(entry.path())) continue;
      ++inspection.files;
      const std::string file = entry.path().lexically_relative(root).generic_string();
      for (const Include& include : find_includes(read_text(entry.path()))) {
        ++inspection.includes;
        const std::string fault = wrong_arrow(file, include);
        if (fault.empty()) continue;
        inspection.faults.push_back(file + ":" + std::to_string(include.line) + ": " + fault);
      }
    }
  }
  std::sort(inspection.faults.begin(), inspection.faults.end());
  return inspection;
}

}  // namespace strata::house
