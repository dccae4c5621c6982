// The scan on the host: a loop over distances for each row, rows side by side on XLA's threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "host_warp.h"
#include "parallel_rows.h"
#include "scan.h"

namespace jax_sa {

struct HostTeam {
  // More appended tokens than this are matched by an algorithm that compares no token twice.
  static constexpr int32_t kCompared = 8;

  HostWarp warp() const { return {}; }

  template <class Body>
  void lead(Body body) const {
    body(HostWarp{});
  }

  // The largest value of all threads, to the leader.
  uint64_t largest(uint64_t value) const { return value; }

  // body(i) for all i in [0, count).
  template <class Body>
  void each(int32_t count, Body body) const {
    for (int32_t i = 0; i < count; ++i) body(i);
  }

  // A thread's share of the numbers in [begin, end()).
  struct Tile {
    static constexpr int32_t kSize = 8;
    int32_t begin;

    int32_t end() const { return begin + kSize; }
    int32_t at(int32_t j) const { return begin + j; }
  };

  // body(tile) for tiles that have all i in [0, count), each i once, and some beyond in the last;
  // to each thread in ascending order.
  template <class Body>
  void tiles(int32_t count, Body body) const {
    for (int32_t begin = 0; begin < count; begin += Tile::kSize) body(Tile{begin});
  }

  // Finds every match anew where that is faster; or leaves that to the caller and returns false.
  // Appended tokens are there by now.
  bool match_whole(const ScanSlot& slot, const Appended& appended) const {
    if (appended.taken <= kCompared) return false;
    match_whole_text(slot, appended.end());
    return true;
  }
};

inline void run(const Scan& op, xla::ffi::ThreadPool pool) {
  parallel_rows(pool, op.rows.count, op.num_tokens(), [&](int32_t row) { op(HostTeam{}, row); });
}

}  // namespace jax_sa
