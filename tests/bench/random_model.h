// Models of any shape with random weights: how fast they run does not depend on what they know.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/model/model_config.h"

namespace infllm::bench {

// Writes config.json and model.safetensors (bf16, without a tokenizer) into `directory`, which is
// made if it is not there. The same bytes each time. Of `config` the shape, rms_norm_eps and
// rope_theta count.
absl::Status WriteRandomModel(const worker::ModelConfig& config, const std::string& directory);

// A directory of its own below that of temporary files, removed with the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace infllm::bench
