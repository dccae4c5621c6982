// kWindow lanes in step on the host: loops. `cuda_warp.h` is the same face on a GPU.
//
// The automaton is written once in terms of `each` (run a body for lanes 0..count-1, then make
// what they wrote visible to all lanes) and of values that every lane has its own of. The lanes of
// one `each` may run in any order.
#pragma once

#include <cstdint>
#include <utility>

#include "slot.h"

namespace jax_sa {

struct HostWarp {
  template <class T>
  struct PerLane {
    T values[kWindow];
    T& operator[](int32_t lane) { return values[lane]; }
    const T& operator[](int32_t lane) const { return values[lane]; }
  };

  template <class Body>
  void each(int32_t count, Body body) const {
    for (int32_t lane = 0; lane < count; ++lane) body(lane);
  }

  template <class Body>
  void only(int32_t lane, Body body) const {
    body(lane);
  }

  // One bit a lane; lanes at or beyond `count` give 0.
  template <class Predicate>
  uint32_t ballot(int32_t count, Predicate predicate) const {
    uint32_t mask = 0;
    for (int32_t lane = 0; lane < count; ++lane) mask |= uint32_t{predicate(lane)} << lane;
    return mask;
  }

  // What lane `from` has for `value`.
  template <class Value>
  auto broadcast(int32_t from, Value value) const {
    return value(from);
  }

  // Gives every lane what lane `from` of it has for `value`.
  template <class T, class From, class Value>
  void gather(PerLane<T>& x, From from, Value value) const {
    for (int32_t lane = 0; lane < kWindow; ++lane) x[lane] = value(from(lane));
  }

  template <class T>
  void set(PerLane<T>& x, int32_t lane, T value) const {
    x[lane] = value;
  }

  // Whether the predicate holds for any index in [begin, end).
  template <class Predicate>
  bool any(int32_t begin, int32_t end, Predicate predicate) const {
    for (int32_t i = begin; i < end; ++i) {
      if (predicate(i)) return true;
    }
    return false;
  }

  // The first index in [0, count) for which the predicate holds; `count` where none does.
  template <class Predicate>
  int32_t find_first(int32_t count, Predicate predicate) const {
    int32_t i = 0;
    while (i < count && !predicate(i)) ++i;
    return i;
  }

  // The same for at most kWindow indices and a predicate that holds from some index on.
  template <class Predicate>
  int32_t partition_point(int32_t count, Predicate predicate) const {
    int32_t low = 0;
    while (low < count) {
      const int32_t middle = low + (count - low) / 2;
      if (predicate(middle)) {
        count = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }

  // Puts a value where lanes of the same `any` may put one too; returns what was there.
  int32_t exchange(int32_t& place, int32_t value) const { return std::exchange(place, value); }

  // Makes what lanes wrote with `exchange` visible to all.
  void sync() const {}

  // Gives every lane but the first the value of the lane below it.
  template <class Value>
  void from_below(int32_t count, PerLane<int32_t>& below, Value value) const {
    for (int32_t lane = 1; lane < count; ++lane) below[lane] = value(lane - 1);
  }

  // Moves the values of the lanes in `mask` together to lanes 0, 1, ...
  template <class T>
  void compact(uint32_t mask, PerLane<T>& x) const {
    int32_t to = 0;
    for (; mask != 0; mask &= mask - 1) x[to++] = x[lowest_bit(mask)];
  }

  // Whether no two of the lanes below `count` have the same value.
  template <class Value>
  bool all_distinct(int32_t count, Value value) const {
    for (int32_t lane = 1; lane < count; ++lane) {
      for (int32_t other = 0; other < lane; ++other) {
        if (value(lane) == value(other)) return false;
      }
    }
    return true;
  }

  static int32_t count_bits(uint32_t mask) { return __builtin_popcount(mask); }
  static int32_t lowest_bit(uint32_t mask) { return __builtin_ctz(mask); }
};

}  // namespace jax_sa
