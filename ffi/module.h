// A platform's Python module: its handlers by name, and the FFI version they need.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

#include "xla/ffi/api/c_api.h"

namespace jax_sa {

inline void define_module(pybind11::module_& module,
                          const std::vector<std::pair<const char*, XLA_FFI_Handler*>>& handlers) {
  pybind11::dict by_name;
  for (const auto& [name, handler] : handlers) {
    by_name[name] = pybind11::capsule(reinterpret_cast<void*>(handler));
  }
  module.attr("handlers") = by_name;
  module.attr("ffi_version") = pybind11::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
}

}  // namespace jax_sa
