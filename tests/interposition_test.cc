// The counter counts, so that what the tests of the steady state say means something.
#include "tests/interposition.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace strata::testing_support {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kOnlyNew = true;
#else
constexpr bool kOnlyNew = false;
#endif

Acquisitions taken_by(const std::function<void()>& body) {
  const Acquisitions before = acquisitions();
  body();
  return acquisitions() - before;
}

// For the compiler not to leave out what leads to it.
void* volatile kept = nullptr;
void keep(void* data) { kept = data; }

TEST(Interposition, CountsNew) {
  EXPECT_EQ(taken_by([] { std::vector<int> something(1000); }), Acquisitions{.memory = 1});
  EXPECT_EQ(taken_by([] { keep(std::make_unique<char[]>(100).get()); }), Acquisitions{.memory = 1});
  struct alignas(128) Wide {
    char data[128];
  };
  EXPECT_EQ(taken_by([] { keep(std::make_unique<Wide>().get()); }), Acquisitions{.memory = 1});
}

TEST(Interposition, CountsMalloc) {
  if (kOnlyNew) GTEST_SKIP() << "the sanitizer has malloc";
  const auto taken = taken_by([] {
    void* data = std::malloc(10);
    keep(data);
    data = std::realloc(data, 100000);
    keep(data);
    std::free(data);
    keep(data = std::calloc(10, 10));
    std::free(data);
    keep(data = std::aligned_alloc(64, 64));
    std::free(data);
    ASSERT_EQ(posix_memalign(&data, 64, 100), 0);
    std::free(data);
  });
  EXPECT_EQ(taken, Acquisitions{.memory = 5});
}

TEST(Interposition, CountsOfALibraryAreApart) {
  if (kOnlyNew) GTEST_SKIP() << "the sanitizer has malloc";
  ASSERT_FALSE(count_apart("no such library"));
  ASSERT_TRUE(count_apart("libc.so"));
  const auto taken = taken_by([] {
    void* data = strdup("copied by the C library");
    keep(data);
    std::free(data);
    keep(std::make_unique<int>().get());
  });
  EXPECT_EQ(taken, (Acquisitions{.memory = 1, .apart = 1}));
}

TEST(Interposition, CountsMappingsThreadsAndFiles) {
  if (kOnlyNew) GTEST_SKIP() << "counted only without a sanitizer";
  const auto mapped = taken_by([] {
    void* data = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(data, MAP_FAILED);
    munmap(data, 4096);
  });
  EXPECT_EQ(mapped, Acquisitions{.mappings = 1});
  EXPECT_EQ(taken_by([] { std::thread([] {}).join(); }).threads, 1);
  const auto opened = taken_by([] {
    const int file = open("/dev/null", O_RDONLY);
    ASSERT_GE(file, 0);
    close(file);
    const int again = openat(AT_FDCWD, "/dev/null", O_RDONLY);
    ASSERT_GE(again, 0);
    close(again);
    FILE* stream = std::fopen("/dev/null", "r");
    ASSERT_NE(stream, nullptr);
    std::fclose(stream);
  });
  EXPECT_EQ(opened.files, 3);
}

TEST(Interposition, NotesWhereThingsWereTaken) {
  note_origins();
  EXPECT_EQ(noted_origins(), "");
  note_origins();
  keep(std::make_unique<int>().get());
  EXPECT_NE(noted_origins().find("interposition_test"), std::string::npos);
}

}  // namespace
}  // namespace strata::testing_support
