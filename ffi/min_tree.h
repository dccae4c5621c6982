// A tree of minima over an array: the nearest smaller value on either side, and the smallest of a
// range, each in a number of steps that grows with the logarithm of the array. The same on host
// and device.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace jax_sa {

class MinTree {
 public:
  // `upper` has room for a fifteenth of `count`, and one more for each level.
  JAX_SA_FN MinTree(const int32_t* values, int32_t* upper, int32_t count)
      : values_(values), upper_(upper), depth_(0) {
    size_[0] = count;
    start_[0] = 0;
    while (size_[depth_] > 1) {
      start_[depth_ + 1] = depth_ == 0 ? 0 : start_[depth_] + size_[depth_];
      size_[depth_ + 1] = (size_[depth_] + kFan - 1) / kFan;
      ++depth_;
    }
  }

  JAX_SA_FN int32_t depth() const { return depth_; }
  JAX_SA_FN int32_t size(int32_t level) const { return size_[level]; }

  // Sets a minimum of a level from those of the level below it.
  JAX_SA_FN void fill(int32_t level, int32_t i) const {
    const int32_t begin = i * kFan;
    const int32_t end = begin + kFan < size_[level - 1] ? begin + kFan : size_[level - 1];
    int32_t smallest = INT32_MAX;
    for (int32_t child = begin; child < end; ++child) keep(smallest, at(level - 1, child));
    upper_[start_[level] + i] = smallest;
  }

  // The last place before i whose value is below the bound; -1 where there is none.
  JAX_SA_FN int32_t before(int32_t i, int32_t bound) const {
    int32_t level = 0;
    for (;;) {
      if (i % kFan != 0) {
        if (at(level, --i) < bound) break;
      } else {
        if (level == depth_) return -1;
        i /= kFan;
        ++level;
      }
    }
    while (level > 0) {
      --level;
      i = i * kFan + kFan - 1;
      while (at(level, i) >= bound) --i;
    }
    return i;
  }

  // The first place after i whose value is below the bound; `count` where there is none.
  JAX_SA_FN int32_t after(int32_t i, int32_t bound) const {
    int32_t level = 0;
    for (;;) {
      if (i % kFan != kFan - 1 && i + 1 < size_[level]) {
        if (at(level, ++i) < bound) break;
      } else {
        if (level == depth_) return size_[0];
        i /= kFan;
        ++level;
      }
    }
    while (level > 0) {
      --level;
      i *= kFan;
      while (at(level, i) >= bound) ++i;
    }
    return i;
  }

  // The smallest value at places begin..end-1, of which there must be one.
  JAX_SA_FN int32_t smallest(int32_t begin, int32_t end) const {
    int32_t smallest = INT32_MAX;
    for (int32_t level = 0; begin < end; ++level) {
      while (begin < end && begin % kFan != 0) keep(smallest, at(level, begin++));
      while (begin < end && end % kFan != 0) keep(smallest, at(level, --end));
      begin /= kFan;
      end /= kFan;
    }
    return smallest;
  }

 private:
  static constexpr int32_t kFan = 16;
  static constexpr int32_t kMaxLevels = 9;  // 16^8 > 2^31

  JAX_SA_FN static void keep(int32_t& smallest, int32_t value) {
    if (value < smallest) smallest = value;
  }
  JAX_SA_FN int32_t at(int32_t level, int32_t i) const {
    return level == 0 ? values_[i] : upper_[start_[level] + i];
  }

  const int32_t* values_;
  int32_t* upper_;
  int32_t depth_;  // the level of one value, the smallest of all
  int32_t start_[kMaxLevels];
  int32_t size_[kMaxLevels];
};

}  // namespace jax_sa
