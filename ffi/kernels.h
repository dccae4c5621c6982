// Launchers of the CUDA kernels: plain pointers and a stream. They allocate nothing, wait for
// nothing, and return what the launch said.
#pragma once

#include <cuda_runtime_api.h>

#include "draft_tree.h"
#include "followers.h"
#include "fused_copy.h"
#include "pool_insert.h"
#include "prefill.h"
#include "rows.h"
#include "scan.h"
#include "seqlens.h"
#include "validate.h"
#include "whole_slots.h"

namespace jax_sa {

cudaError_t launch(const Extend& op, cudaStream_t stream);
cudaError_t launch(const Lookup& op, cudaStream_t stream);
cudaError_t launch(const LookupAfter& op, cudaStream_t stream);
cudaError_t launch(const ExtendLookup& op, cudaStream_t stream);
cudaError_t launch(const Prefill& op, cudaStream_t stream);
cudaError_t launch(const LookupTree& op, cudaStream_t stream);
cudaError_t launch(const ExtendLookupTree& op, cudaStream_t stream);
cudaError_t launch(const ReadTokens& op, cudaStream_t stream);
cudaError_t launch(const Validate& op, cudaStream_t stream);
cudaError_t launch(const Reset& op, cudaStream_t stream);
cudaError_t launch(const Insert& op, cudaStream_t stream);
cudaError_t launch(const CopySlots& op, cudaStream_t stream);
cudaError_t launch(const PoolInsert<BlockTexts>& op, cudaStream_t stream);
cudaError_t launch(const PoolInsert<SlotTexts>& op, cudaStream_t stream);
cudaError_t launch(const NoteFollowers& op, cudaStream_t stream);
cudaError_t launch(const Scan& op, cudaStream_t stream);
cudaError_t launch(const ExpandSeqlens& op, cudaStream_t stream);
cudaError_t launch(const FusedCopy& op, cudaStream_t stream);

}  // namespace jax_sa
