// prefill: one kernel on all of the device, which meets between phases.
#include "cuda_grid.h"
#include "kernels.h"
#include "parallel_build.h"

namespace jax_sa {
namespace {

// Fewer blocks meet faster; each has work for its threads at least.
constexpr int32_t kElementsPerBlock = 512;

__global__ void __launch_bounds__(kGridThreads, 1) build(const __grid_constant__ Prefill op) {
  __shared__ CudaGrid::Scratch scratch;
  const CudaGrid grid{scratch, op.block_counts(), op.block_counts() + kMaxBlocks * kDigits};
  if (op.plan(grid)) build_planned(grid, op);
}

}  // namespace

cudaError_t launch(const Prefill& op, cudaStream_t stream) {
  if (op.rows.count == 0) return cudaSuccess;
  int device = 0;
  int blocks = 0;
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  cudaError_t error = cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const int32_t wanted = (op.workspace.capacity + kElementsPerBlock - 1) / kElementsPerBlock;
  if (blocks > kMaxBlocks) blocks = kMaxBlocks;
  if (blocks > wanted) blocks = wanted;
  void* arguments[] = {const_cast<Prefill*>(&op)};
  return cudaLaunchCooperativeKernel(build, dim3(blocks), dim3(kGridThreads), arguments, 0, stream);
}

}  // namespace jax_sa
