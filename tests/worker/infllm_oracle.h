// The whole method for one layer, from its definitions: naive loops in double over a sequence, one
// softmax per query. Shares no code with the worker, the kernels or the memory store.
#pragma once

#include <cstdint>
#include <vector>

#include "tests/worker/attention_oracle.h"
#include "worker/attention/attention_options.h"
#include "worker/model/model_config.h"

namespace infllm::worker {

struct OracleRetrieval {
  int64_t position = 0;         // of the exec block's first query
  std::vector<int64_t> blocks;  // ascending
  std::vector<double> mass;     // parallel: probability drawn, over heads, queries and tokens
  bool operator==(const OracleRetrieval& other) const {
    return position == other.position && blocks == other.blocks;
  }
};

struct OracleRun {
  std::vector<double> out;  // [tokens, q_heads, head_dim]
  std::vector<OracleRetrieval> retrievals;
  int64_t unseen = 0;  // (query, query head, key) that full attention would have seen
};

// Exec blocks begin at multiples of exec_block.
OracleRun OracleInfLlm(const ModelConfig& model, const AttentionOptions& options,
                       const Sequence& sequence);

}  // namespace infllm::worker
