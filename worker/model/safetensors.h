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

// One tensor of a file; `data` points into the mapping and need not be aligned for its dtype.
struct TensorView {
  kernels::DType dtype = kernels::DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
};

// The header of a safetensors file: names, dtypes, shapes, byte ranges, all checked against each
// other and against the size of `file` (overlap, gaps, overflow, unknown dtypes), which is the
// whole file. Tensors of dtypes other than f32, bf16, f16 are refused.
//   INVALID_ARGUMENT  the text names tensor and value
absl::StatusOr<std::map<std::string, TensorView>> ParseSafetensors(std::span<const std::byte> file);

// The weight_map of a model.safetensors.index.json: tensor name to file name. File names are
// checked to be plain ones, so that none leads out of the model's directory.
absl::StatusOr<std::map<std::string, std::string>> ParseShardIndex(std::string_view json);

// All tensors of a model directory, memory-mapped: `model.safetensors`, the shards named by
// `model.safetensors.index.json`, or the only *.safetensors file there. Immutable, thread-safe.
// The files must not be changed while they are mapped: a page that a file lost ends the process.
class ModelFiles {
 public:
  //   NOT_FOUND         no weights in `directory`, or a shard of the index is missing
  //   INVALID_ARGUMENT  a file is malformed or truncated; the text names file and tensor
  // Other errors are the system's.
  static absl::StatusOr<std::unique_ptr<ModelFiles>> Open(const std::string& directory);
  virtual ~ModelFiles() = default;

  // The tensor, checked to have `shape`.
  //   NOT_FOUND, INVALID_ARGUMENT (shape differs: both are named; the file has another size now)
  virtual absl::StatusOr<TensorView> Get(std::string_view name,
                                         std::span<const int64_t> shape) const = 0;
  virtual bool Has(std::string_view name) const = 0;
  virtual std::vector<std::string> names() const = 0;
  // Of all tensors.
  virtual int64_t total_bytes() const = 0;
  // XXH3-128 over names, dtypes, shapes and bytes, in name order: how the tensors are spread over
  // files does not matter. The first call reads all files; later ones are free.
  virtual memstore::Fingerprint fingerprint() const = 0;
  // Takes the mapped pages out of this process's memory (weights have been packed). Reading them
  // again is fine, and the system's file cache keeps them as long as it has room.
  virtual void DropPages() const = 0;
};

}  // namespace infllm::worker
