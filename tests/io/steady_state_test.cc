// Counts every allocation of the process, so it is a binary of its own.
#include <cstdlib>
#include <new>

#include "io/striped_file.h"
#include "tests/io/io_test_support.h"

namespace {

std::atomic<size_t> allocations = 0;

void* counted(size_t bytes, size_t alignment) {
  ++allocations;
  void* p = nullptr;
  if (::posix_memalign(&p, std::max(alignment, sizeof(void*)), bytes) != 0) throw std::bad_alloc();
  return p;
}

}  // namespace

void* operator new(size_t bytes) { return counted(bytes, alignof(std::max_align_t)); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }

namespace strata::io {
namespace {

struct Case {
  BackendChoice choice = BackendChoice::threads;
  bool registered = false;
  size_t paths = 1;
};

class SteadyState : public testing::TestWithParam<std::tuple<Case, bool>> {};

TEST_P(SteadyState, AllocatesNothing) {
  const auto [tested, faulty] = GetParam();
  std::unique_ptr<IoBackend> backend = make_plain_backend(tested.choice, 8);
  if (backend == nullptr) GTEST_SKIP() << "io_uring is forbidden here";
  if (faulty) {
    const FaultPlan plan = {.short_transfer_permille = 200,
                            .error_permille = 20,
                            .again_permille = 100,
                            .delay_permille = 50,
                            .reorder = true};
    backend = make_fault_backend(std::move(backend), plan);
  }
  const TemporaryDirectory dir;
  NullLogSink log;
  NullTrafficSink traffic;
  constexpr size_t kRequests = 32;
  constexpr size_t kRequestBytes = 32768;
  const StripedFile file = StripedFile::create_scratch(
      {.directories = std::vector<std::string>(tested.paths, dir.path()),
       .weights = std::vector<uint32_t>(tested.paths, 1),
       .block_bytes = 16384},
      kRequests * kRequestBytes, {}, log);
  const AlignedBuffer bytes(kRequests * kRequestBytes);
  IoEngine engine(std::move(backend), {.block_bytes = 8192}, traffic);
  if (tested.registered) {
    IoResources resources = {.buffers = {bytes.span()}};
    for (const BlockFile& part : file.files()) resources.files.push_back(part.fd());
    engine.attach(resources);
  }
  std::array<IoRequest, kRequests> requests;
  std::array<IoRequest*, kRequests> done;

  const size_t before = allocations;
  for (const Op op : {Op::write, Op::read, Op::write, Op::read}) {
    for (size_t i = 0; i < kRequests; ++i) {
      const size_t offset = i * kRequestBytes;
      requests[i] = request_for(op, file, offset, bytes.span().subspan(offset, kRequestBytes));
      engine.submit(requests[i]);
    }
    while (engine.in_flight() > 0) engine.reap(done, kNoLimit);
    engine.wake();
  }
  EXPECT_EQ(allocations - before, 0u);
}

INSTANTIATE_TEST_SUITE_P(Backends, SteadyState,
                         testing::Combine(testing::Values(Case{BackendChoice::io_uring},
                                                          Case{BackendChoice::io_uring, true},
                                                          Case{BackendChoice::io_uring, true, 2},
                                                          Case{BackendChoice::threads}),
                                          testing::Bool()));

}  // namespace
}  // namespace strata::io
