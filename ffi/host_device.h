// Marks what runs on the host and, where nvcc compiles it, on the device.
#pragma once

#ifdef __CUDACC__
#define JAX_SA_FN __device__ __forceinline__
#else
#define JAX_SA_FN inline
#endif
