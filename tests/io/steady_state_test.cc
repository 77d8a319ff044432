// I/O under way takes nothing from the system, disturbed or not.
#include "io/striped_file.h"
#include "tests/interposition.h"
#include "tests/io/io_test_support.h"

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

  const auto before = testing_support::acquisitions();
  for (const Op op : {Op::write, Op::read, Op::write, Op::read}) {
    for (size_t i = 0; i < kRequests; ++i) {
      const size_t offset = i * kRequestBytes;
      requests[i] = request_for(op, file, offset, bytes.span().subspan(offset, kRequestBytes));
      engine.submit(requests[i]);
    }
    while (engine.in_flight() > 0) engine.reap(done, kNoLimit);
    engine.wake();
  }
  EXPECT_EQ(testing_support::acquisitions() - before, testing_support::Acquisitions{});
}

INSTANTIATE_TEST_SUITE_P(Backends, SteadyState,
                         testing::Combine(testing::Values(Case{BackendChoice::io_uring},
                                                          Case{BackendChoice::io_uring, true},
                                                          Case{BackendChoice::io_uring, true, 2},
                                                          Case{BackendChoice::threads}),
                                          testing::Bool()));

}  // namespace
}  // namespace strata::io
