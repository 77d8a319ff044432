#include <fmt/format.h>

#include "io/io_backend.h"
#include "strata/error.h"

namespace strata::io {

std::unique_ptr<IoBackend> make_backend(BackendChoice choice, uint32_t max_in_flight, int threads,
                                        LogSink& log) {
  if (choice == BackendChoice::threads) return make_thread_backend(max_in_flight, threads);
  try {
    return make_uring_backend(max_in_flight);
  } catch (const IoError& error) {
    if (choice == BackendChoice::io_uring) throw;
    log.log(LogLevel::warning,
            fmt::format("{}; file I/O runs on {} threads instead", error.what(), threads));
  }
  return make_thread_backend(max_in_flight, threads);
}

}  // namespace strata::io
