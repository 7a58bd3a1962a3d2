#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/core/dtype.h"
#include "worker/model/model_config.h"
#include "worker/model/safetensors.h"

namespace infllm::worker {

// Rows of the input embedding, read where the file is mapped: only rows in use take memory.
// Borrows the mapping of a ModelFiles. Immutable, thread-safe.
class EmbeddingTable {
 public:
  EmbeddingTable() = default;
  // `rows` is [vocab_size, hidden_size].
  explicit EmbeddingTable(TensorView rows) : rows_(std::move(rows)) {}

  // Writes row `token` to out[hidden_size]. REQUIRES: 0 <= token < vocab_size.
  void EmbedRow(int32_t token, float* out) const;

 private:
  TensorView rows_;
};

// The weights of one decoder layer, in device memory.
struct LayerWeights {
  kernels::Buffer attention_norm;  // [hidden], f32
  kernels::Weight qkv;             // [(q_heads + 2 kv_heads) head_dim, hidden]
  kernels::Buffer qkv_bias;        // [(q_heads + 2 kv_heads) head_dim], f32; or empty
  kernels::Weight o;               // [hidden, q_heads head_dim]
  kernels::Buffer mlp_norm;        // [hidden], f32
  kernels::Weight gate_up;         // [2 intermediate, hidden]: gate, then up
  kernels::Weight down;            // [hidden, intermediate]
};

// Must not outlive the backend, nor the ModelFiles that it was loaded from.
struct DecoderWeights {
  EmbeddingTable embedding;  // host memory, whatever the device
  std::vector<LayerWeights> layers;
  kernels::Buffer final_norm;  // [hidden], f32
  kernels::Weight lm_head;     // [vocab, hidden]
  int64_t packed_bytes = 0;    // of all of the above but the embedding
};

// Device memory that the weights of such a model take if matrices are stored as `stored`, without
// the padding of a backend's layout.
int64_t DecoderWeightBytes(const ModelConfig& config, kernels::DType stored);

// OK if so many bytes of weights, and some padding, fit into `available`; otherwise
// RESOURCE_EXHAUSTED with both in GiB and what to do.
absl::Status CheckWeightsFit(int64_t weight_bytes, int64_t available, kernels::DType stored);

// Packs all weights of a model for `backend`, in `compute` dtype (kF32 or kBF16).
//   INVALID_ARGUMENT    tensors that the model needs are missing or have another shape, or there
//                       are tensors that this architecture does not have; names are given
//   RESOURCE_EXHAUSTED  the weights do not fit into memory; checked before anything is packed
absl::StatusOr<std::unique_ptr<DecoderWeights>> LoadDecoderWeights(const ModelConfig& config,
                                                                   const ModelFiles& files,
                                                                   kernels::Backend& backend,
                                                                   kernels::DType compute);

}  // namespace infllm::worker
