#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/dtype.h"
#include "memstore/block.h"

namespace infllm::worker {

// One tensor of a file; `data` points into the mapping.
struct TensorView {
  kernels::DType dtype = kernels::DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
};

// The header of a safetensors file: names, dtypes, shapes, byte ranges, all checked against each
// other and against `file_bytes` (overlap, gaps, overflow, unknown dtypes). `file` is the whole
// file. Tensors of dtypes other than f32, bf16, f16 are refused.
absl::StatusOr<std::map<std::string, TensorView>> ParseSafetensors(
    std::span<const std::byte> file);

// All tensors of a model directory, memory-mapped: `model.safetensors`, the shards named by
// `model.safetensors.index.json`, or the only *.safetensors file there. Immutable, thread-safe.
class ModelFiles {
 public:
  //   NOT_FOUND         no weights in `directory`, or a shard of the index is missing
  //   INVALID_ARGUMENT  a file is malformed or truncated; the text names file and tensor
  static absl::StatusOr<std::unique_ptr<ModelFiles>> Open(const std::string& directory);
  virtual ~ModelFiles() = default;

  // The tensor, checked to have `shape`.
  //   NOT_FOUND, INVALID_ARGUMENT (shape differs: both are named)
  virtual absl::StatusOr<TensorView> Get(std::string_view name,
                                         std::span<const int64_t> shape) const = 0;
  virtual bool Has(std::string_view name) const = 0;
  virtual std::vector<std::string> names() const = 0;
  virtual int64_t total_bytes() const = 0;
  // XXH3-128 over names, dtypes, shapes and bytes, in name order.
  virtual memstore::Fingerprint fingerprint() const = 0;
  // Tells the system that the mapped pages are no longer needed (weights have been packed).
  virtual void DropPages() const = 0;
};

}  // namespace infllm::worker
