#include "tests/house/include_arrows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <random>
#include <stdexcept>

namespace strata::house {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(IncludeArrows, PointOneWayInThisRepository) {
  const Inspection inspection = inspect_includes(STRATA_SOURCE_DIR);
  EXPECT_THAT(inspection.faults, IsEmpty());
  // It did read this file, at least.
  EXPECT_GE(inspection.files, 3);
  EXPECT_GE(inspection.includes, 3);
}

struct Arrow {
  std::string file;
  std::string header;
  bool quoted = true;
};

void PrintTo(const Arrow& arrow, std::ostream* out) {
  *out << arrow.file << " includes " << arrow.header;
}

std::string judge(const Arrow& arrow) {
  return wrong_arrow(arrow.file, {.line = 1, .header = arrow.header, .quoted = arrow.quoted});
}

class WrongArrow : public ::testing::TestWithParam<Arrow> {};

TEST_P(WrongArrow, IsFound) { EXPECT_NE(judge(GetParam()), ""); }

INSTANTIATE_TEST_SUITE_P(
    Upwards, WrongArrow,
    ::testing::Values(Arrow{"include/strata/tier.h", "io/io_engine.h"},
                      Arrow{"include/strata/engine.h", "engine/config/options.h"},
                      Arrow{"io/ring.cc", "offload/pump.h"},
                      Arrow{"kernels/device/device.cc", "kernels/ops/layer_ops.h"},
                      Arrow{"kernels/device/device.cc", "offload/tier_manager.h"},
                      Arrow{"kernels/ops/cpu/gelu.cc", "engine/model/gpt2.h"},
                      Arrow{"offload/pump.cc", "engine/plan.h"},
                      Arrow{"engine/plan.cc", "tools/train.h"},
                      Arrow{"tools/train.cc", "tests/house/include_arrows.h"}));

INSTANTIATE_TEST_SUITE_P(Sideways, WrongArrow,
                         ::testing::Values(Arrow{"io/ring.cc", "kernels/device/device.h"},
                                           Arrow{"io/ring.cc", "kernels/ops/optimizer_ops.h"},
                                           Arrow{"kernels/device/device.cc", "io/io_engine.h"},
                                           Arrow{"kernels/ops/cpu/gelu.cc", "io/io_engine.h"},
                                           Arrow{"kernels/ops/cpu/gelu.cc", "offload/pump.h"},
                                           Arrow{"offload/pump.cc", "kernels/ops/layer_ops.h"}));

INSTANTIATE_TEST_SUITE_P(Disguised, WrongArrow,
                         ::testing::Values(Arrow{"io/ring.cc", "offload/pump.h", false},
                                           Arrow{"io/ring.cc", "../offload/pump.h"},
                                           Arrow{"io/ring.cc", "io/../offload/pump.h"},
                                           Arrow{"offload/sub/pump.cc", "slot_store.h"},
                                           Arrow{"kernels/shared.h", "strata/dtype.h"}));

INSTANTIATE_TEST_SUITE_P(BackendInPublicHeader, WrongArrow,
                         ::testing::Values(Arrow{"include/strata/a.h", "cuda_runtime.h", false},
                                           Arrow{"include/strata/a.h", "cublasLt.h", false},
                                           Arrow{"include/strata/a.h", "nccl.h", false},
                                           Arrow{"include/strata/a.h", "mpi.h", false},
                                           Arrow{"include/strata/a.h", "liburing.h", false},
                                           Arrow{"include/strata/a.h", "dnnl.hpp", false},
                                           Arrow{"include/strata/a.h", "oneapi/tbb.h", false},
                                           Arrow{"include/strata/a.h", "tbb/flow_graph.h", false}));

class RightArrow : public ::testing::TestWithParam<Arrow> {};

TEST_P(RightArrow, IsAccepted) { EXPECT_EQ(judge(GetParam()), ""); }

INSTANTIATE_TEST_SUITE_P(Downwards, RightArrow,
                         ::testing::Values(Arrow{"include/strata/plan.h", "strata/tier.h"},
                                           Arrow{"io/ring.cc", "io/io_engine.h"},
                                           Arrow{"io/ring.cc", "strata/traffic.h"},
                                           Arrow{"kernels/ops/cpu/a.cc", "kernels/device/device.h"},
                                           Arrow{"offload/pump.cc", "io/io_engine.h"},
                                           Arrow{"offload/pump.cc", "kernels/device/device.h"},
                                           Arrow{"engine/plan.cc", "kernels/ops/layer_ops.h"},
                                           Arrow{"engine/plan.cc", "io/io_engine.h"},
                                           Arrow{"tools/train.cc", "io/io_engine.h"},
                                           Arrow{"tests/io/a_test.cc", "kernels/ops/layer_ops.h"},
                                           Arrow{"tests/io/a_test.cc", "tests/house/x.h"}));

INSTANTIATE_TEST_SUITE_P(ToLibraries, RightArrow,
                         ::testing::Values(Arrow{"include/strata/plan.h", "vector", false},
                                           Arrow{"io/ring.cc", "liburing.h", false},
                                           Arrow{"kernels/ops/cpu/a.cc", "hwy/highway.h"}));

TEST(FindIncludes, ReadsDirectivesWithTheirLines) {
  const std::string source =
      "#pragma once\n"
      "#include <vector>  // values\n"
      "// #include \"io/commented.h\"\n"
      "  #  include \"io/indented.h\"\n"
      "const char* text = \"#include <quoted>\";\n"
      "#include \"io/last.h\"";
  EXPECT_THAT(find_includes(source),
              ElementsAre(Include{2, "vector", false}, Include{4, "io/indented.h", true},
                          Include{6, "io/last.h", true}));
}

// A repository in a temporary folder, gone with the object.
class ScratchHouse {
 public:
  ScratchHouse()
      : root_(fs::temp_directory_path() /
              ("strata-house-" + std::to_string(std::random_device{}()))) {
    for (const char* folder :
         {"include/strata", "io", "kernels/ops", "offload", "engine", "tools", "tests"}) {
      fs::create_directories(root_ / folder);
    }
  }
  ~ScratchHouse() {
    std::error_code ignored;
    fs::remove_all(root_, ignored);
  }
  ScratchHouse(const ScratchHouse&) = delete;
  ScratchHouse& operator=(const ScratchHouse&) = delete;

  void write(const std::string& file, const std::string& text) const {
    std::ofstream(root_ / file) << text;
  }
  const fs::path& root() const { return root_; }

 private:
  fs::path root_;
};

TEST(InspectIncludes, NamesFileLineAndHeaderOfEachFault) {
  const ScratchHouse house;
  house.write("io/ring.cc", "#include <vector>\n#include \"offload/pump.h\"\n");
  house.write("offload/pump.h", "#pragma once\n#include \"io/ring.h\"\n");
  house.write("kernels/ops/gelu.cu", "\n\n#include \"engine/plan.h\"\n");
  house.write("tools/notes.md", "#include \"tests/a.h\"\n");

  const Inspection inspection = inspect_includes(house.root());
  EXPECT_THAT(inspection.faults, ElementsAre("io/ring.cc:2: io/ must not include offload/pump.h",
                                             "kernels/ops/gelu.cu:3: kernels/ops/ must not include "
                                             "engine/plan.h"));
  EXPECT_EQ(inspection.files, 3);
  EXPECT_EQ(inspection.includes, 4);
}

TEST(InspectIncludes, RefusesARootThatIsNotTheHouse) {
  const ScratchHouse house;
  fs::remove_all(house.root() / "offload");
  EXPECT_THROW(inspect_includes(house.root()), std::runtime_error);
}

}  // namespace
}  // namespace strata::house
