#pragma once

#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/core/thread_pool.h"
#include "memstore/memory_store.h"
#include "services/cli/flags.h"
#include "services/cli/interrupt.h"
#include "worker/attention/attention_policy.h"
#include "worker/engine/loaded_model.h"
#include "worker/engine/session.h"
#include "worker/transformer/transformer.h"

namespace infllm::services {

// A model in memory, ready to be run under any attention policy.
struct ModelRuntime {
  // Checks, before it loads the weights, that the model can run under each of `attentions`.
  static absl::StatusOr<std::unique_ptr<ModelRuntime>> Load(
      const RuntimeFlags& flags, std::span<const RuntimeFlags> attentions);

  std::unique_ptr<kernels::ThreadPool> pool;
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<worker::LoadedModel> model;
  std::unique_ptr<worker::Transformer> transformer;
  kernels::DType dtype = kernels::DType::kF32;
  double load_seconds = 0;
};

// A way to attend: the policy, and the store of its far blocks, null if it keeps none.
struct AttentionRuntime {
  std::unique_ptr<memstore::MemoryStore> store;
  std::unique_ptr<worker::AttentionPolicy> policy;
};
// What the flags tell about method and memory store. `model` must outlive the result.
absl::StatusOr<AttentionRuntime> NewAttention(ModelRuntime& model, const RuntimeFlags& flags);

// All that a command needs to run a model. While one lives, signals do not end the process but ask
// it to stop: the store may have directories to remove, and another process contexts to forget.
struct Runtime : ModelRuntime {
  static absl::StatusOr<std::unique_ptr<Runtime>> Make(const RuntimeFlags& flags);

  absl::StatusOr<std::unique_ptr<worker::Session>> NewSession() {
    return worker::Session::New(*transformer, *attention.policy);
  }

  Interrupt interrupt;  // from before the store is opened until it is gone
  AttentionRuntime attention;
};

// FAILED_PRECONDITION if the model directory has no tokenizer: the command needs text.
absl::Status RequireTokenizer(const worker::LoadedModel& model, const std::string& directory);

// The whole of a file or pipe, unpacked if it is an xz archive, or of stdin for "-".
//   INVALID_ARGUMENT  it is empty, larger than 1 GiB, a directory or a device
//   by errno if it cannot be read; DATA_LOSS, RESOURCE_EXHAUSTED: those of UnpackXz
absl::StatusOr<std::string> ReadText(const std::string& path);

}  // namespace infllm::services
