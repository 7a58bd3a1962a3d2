#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/core/thread_pool.h"
#include "memstore/memory_store.h"
#include "services/cli/flags.h"
#include "worker/attention/attention_policy.h"
#include "worker/engine/loaded_model.h"
#include "worker/engine/session.h"
#include "worker/transformer/transformer.h"

namespace infllm::services {

// All that a command needs to run a model, made from the flags in the order of their dependence.
struct Runtime {
  static absl::StatusOr<std::unique_ptr<Runtime>> Make(const RuntimeFlags& flags);

  std::unique_ptr<kernels::ThreadPool> pool;
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<worker::LoadedModel> model;
  std::unique_ptr<memstore::MemoryStore> store;
  std::unique_ptr<worker::AttentionPolicy> policy;
  std::unique_ptr<worker::Transformer> transformer;
  kernels::DType dtype = kernels::DType::kF32;
  double load_seconds = 0;

  absl::StatusOr<std::unique_ptr<worker::Session>> NewSession() {
    return worker::Session::New(*transformer, *policy);
  }
};

// FAILED_PRECONDITION if the model directory has no tokenizer: the command needs text.
absl::Status RequireTokenizer(const worker::LoadedModel& model, const std::string& directory);

// The whole of a file, or of stdin for "-".
absl::StatusOr<std::string> ReadText(const std::string& path);

}  // namespace infllm::services
