// Names for XLA's buffers of int32.
#pragma once

#include "xla/ffi/api/ffi.h"

namespace jax_sa {

namespace ffi = xla::ffi;

template <size_t rank>
using Ints = ffi::Buffer<ffi::S32, rank>;
template <size_t rank>
using IntsOut = ffi::Result<Ints<rank>>;

}  // namespace jax_sa
