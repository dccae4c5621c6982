// Rows side by side on XLA's thread pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace jax_sa {

// Waking a thread takes about as long as appending this many tokens.
constexpr int64_t kTokensPerThread = 128;

// Runs body(row) for every row in [0, count), about `tokens` tokens of work in all, and returns
// when all have run. The calling thread takes rows like any other, so that no pool is ever too
// busy to finish.
template <class Body>
void parallel_rows(xla::ffi::ThreadPool pool, int32_t count, int64_t tokens, const Body& body) {
  const int64_t threads = std::min({pool.num_threads(), int64_t{count}, tokens / kTokensPerThread});
  if (threads <= 1) {
    for (int32_t row = 0; row < count; ++row) body(row);
    return;
  }
  struct Progress {
    std::atomic<int32_t> taken{0};
    int32_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto progress = std::make_shared<Progress>();
  // `body` is gone once this function returned; it only returns when no row is left to take.
  const auto work = [progress, count, &body] {
    int32_t done = 0;
    for (int32_t row; (row = progress->taken.fetch_add(1)) < count; ++done) body(row);
    if (done == 0) return;
    const std::lock_guard<std::mutex> lock(progress->mutex);
    progress->done += done;
    if (progress->done == count) progress->all_done.notify_one();
  };
  for (int64_t i = 1; i < threads; ++i) pool.Schedule([work] { work(); });
  work();
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->all_done.wait(lock, [&] { return progress->done == count; });
}

}  // namespace jax_sa
