// Block selection of the reference backend. Arguments have been validated by the caller.
#pragma once

#include "kernels/ops/select.h"

namespace infllm::kernels {

void ReferenceRepresentatives(const RepresentativesArgs& args);
void ReferenceMeanQueries(const MeanQueriesArgs& args);
void ReferenceScoreBlocks(const ScoreBlocksArgs& args);
void ReferenceTopK(const TopKArgs& args);
void ReferenceLookUpBlocks(const LookUpBlocksArgs& args);

}  // namespace infllm::kernels
