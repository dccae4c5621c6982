// Marks what runs on the host and, where nvcc compiles it, on the device.
#pragma once

#ifdef __CUDACC__
#define JAX_SA_FN __device__ __forceinline__
// That host code which nvcc compiles calls as well.
#define JAX_SA_SHARED_FN __host__ __device__ __forceinline__
// Before a loop over an array that is to stay in registers.
#define JAX_SA_UNROLL _Pragma("unroll")
#else
#define JAX_SA_FN inline
#define JAX_SA_SHARED_FN inline
#define JAX_SA_UNROLL
#endif
