// kWindow lanes in step on a GPU: a warp. `host_warp.h` documents the face.
#pragma once

#include <cstdint>

#include "slot.h"

namespace jax_sa {

struct CudaWarp {
  static constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

  int32_t own_lane;
  Suffix* scratch;  // [kWindow] in shared memory

  template <class T>
  struct PerLane {
    T value;
    JAX_SA_FN T& operator[](int32_t) { return value; }
    JAX_SA_FN const T& operator[](int32_t) const { return value; }
  };

  template <class Body>
  JAX_SA_FN void each(int32_t count, Body body) const {
    if (own_lane < count) body(own_lane);
    __syncwarp();
  }

  template <class Body>
  JAX_SA_FN void only(int32_t lane, Body body) const {
    if (own_lane == lane) body(lane);
    __syncwarp();
  }

  template <class Predicate>
  JAX_SA_FN uint32_t ballot(int32_t count, Predicate predicate) const {
    return __ballot_sync(kAllLanes, own_lane < count && predicate(own_lane));
  }

  template <class Value>
  JAX_SA_FN int32_t broadcast(int32_t from, Value value) const {
    return __shfl_sync(kAllLanes, static_cast<int32_t>(value(own_lane)), from);
  }

  template <class T, class From, class Value>
  JAX_SA_FN void gather(PerLane<T>& x, From from, Value value) const {
    x.value = __shfl_sync(kAllLanes, value(own_lane), from(own_lane));
  }

  template <class T>
  JAX_SA_FN void set(PerLane<T>& x, int32_t lane, T value) const {
    if (own_lane == lane) x.value = value;
  }

  template <class Predicate>
  JAX_SA_FN bool any(int32_t begin, int32_t end, Predicate predicate) const {
    bool found = false;
    for (int32_t i = begin + own_lane; i < end; i += kWindow) found |= predicate(i);
    return __any_sync(kAllLanes, found);
  }

  template <class Predicate>
  JAX_SA_FN int32_t find_first(int32_t count, Predicate predicate) const {
    for (int32_t begin = 0; begin < count; begin += kWindow) {
      const int32_t i = begin + own_lane;
      const uint32_t found = __ballot_sync(kAllLanes, i < count && predicate(i));
      if (found != 0) return begin + lowest_bit(found);
    }
    return count;
  }

  template <class Predicate>
  JAX_SA_FN int32_t partition_point(int32_t count, Predicate predicate) const {
    return find_first(count, predicate);
  }

  JAX_SA_FN int32_t exchange(int32_t& place, int32_t value) const {
    return atomicExch(&place, value);
  }

  JAX_SA_FN void sync() const { __syncwarp(); }

  template <class Value>
  JAX_SA_FN void from_below(int32_t, PerLane<int32_t>& below, Value value) const {
    below.value = __shfl_up_sync(kAllLanes, static_cast<int32_t>(value(own_lane)), 1);
  }

  JAX_SA_FN void compact(uint32_t mask, PerLane<Suffix>& x) const {
    if (mask >> own_lane & 1) scratch[count_bits(mask & ((1u << own_lane) - 1))] = x.value;
    __syncwarp();
    x.value = scratch[own_lane];
    __syncwarp();
  }

  template <class Value>
  JAX_SA_FN bool all_distinct(int32_t count, Value value) const {
    if (count < 2) return true;
    const uint32_t lanes = count == kWindow ? kAllLanes : (1u << count) - 1;
    const uint32_t same = __match_any_sync(kAllLanes, value(own_lane)) & lanes;
    return __ballot_sync(kAllLanes, own_lane < count && count_bits(same) > 1) == 0;
  }

  JAX_SA_FN static int32_t count_bits(uint32_t mask) { return __popc(mask); }
  JAX_SA_FN static int32_t lowest_bit(uint32_t mask) { return __ffs(mask) - 1; }
};

}  // namespace jax_sa
