// The ops on rows: one warp a row, one row a block, so that rows spread over all multiprocessors
// and none waits for another's longer walk.
#include "cuda_warp.h"
#include "kernels.h"

namespace jax_sa {
namespace {

template <class Op>
__global__ void __launch_bounds__(kWindow, 1) run_rows(const __grid_constant__ Op op) {
  __shared__ Suffix scratch[kWindow];
  op(CudaWarp{static_cast<int32_t>(threadIdx.x), scratch}, static_cast<int32_t>(blockIdx.x));
}

template <class Op>
cudaError_t launch_rows(const Op& op, cudaStream_t stream) {
  if (op.rows.count == 0) return cudaSuccess;
  run_rows<<<op.rows.count, kWindow, 0, stream>>>(op);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch(const Extend& op, cudaStream_t stream) { return launch_rows(op, stream); }
cudaError_t launch(const Lookup& op, cudaStream_t stream) { return launch_rows(op, stream); }
cudaError_t launch(const LookupAfter& op, cudaStream_t stream) { return launch_rows(op, stream); }
cudaError_t launch(const ExtendLookup& op, cudaStream_t stream) { return launch_rows(op, stream); }
cudaError_t launch(const LookupTree& op, cudaStream_t stream) { return launch_rows(op, stream); }
cudaError_t launch(const ExtendLookupTree& op, cudaStream_t stream) {
  return launch_rows(op, stream);
}
cudaError_t launch(const ReadTokens& op, cudaStream_t stream) { return launch_rows(op, stream); }
cudaError_t launch(const Validate& op, cudaStream_t stream) { return launch_rows(op, stream); }

}  // namespace jax_sa
