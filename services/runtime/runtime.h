#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memstore/memory_store.h"
#include "services/runtime/flags.h"
#include "worker/engine/engine.h"
#include "worker/engine/model_runtime.h"

namespace infllm::services {

// Loads what the flags name. Checks before the weights that the model can run under each of
// `attentions`.
absl::StatusOr<std::unique_ptr<worker::ModelRuntime>> LoadModel(
    const RuntimeFlags& flags, std::span<const RuntimeFlags> attentions);

// A way to attend: the engine, and the store of its far blocks, null if it keeps none.
struct EngineRuntime {
  std::unique_ptr<memstore::MemoryStore> store;
  std::unique_ptr<worker::Engine> engine;
  int64_t step_tokens = 0;
  // Sequences that may run at a time: their cached blocks must fit in the RAM tier.
  int64_t max_sequences = 1;
};
// What the flags tell about method, memory and memory store. `model` must outlive the result, and
// so must *cancel, which ends calls to a remote store; it may be null.
absl::StatusOr<EngineRuntime> NewEngine(worker::ModelRuntime& model, const RuntimeFlags& flags,
                                        const std::atomic<bool>* cancel);

// All that a command needs to run a model.
struct Runtime : worker::ModelRuntime, EngineRuntime {
  static absl::StatusOr<std::unique_ptr<Runtime>> Make(const RuntimeFlags& flags,
                                                       const std::atomic<bool>* cancel);
};

// Engine::StartFromPrefix. Says on stderr what the sequence goes on from, unless `quiet`, and why
// it does not although it could.
absl::StatusOr<worker::Engine::Start> StartFromPrefix(worker::Engine& engine,
                                                      std::span<const int32_t> tokens, bool quiet);
// Says on stderr why a text is read as if there were no such context.
void TellReadAnew(const absl::Status& why);

// FAILED_PRECONDITION if the model directory has no tokenizer: the command needs text.
absl::Status RequireTokenizer(const worker::LoadedModel& model, const std::string& directory);

// The whole of a file or pipe, unpacked if it is an xz archive, or of stdin for "-".
//   INVALID_ARGUMENT  it is empty, larger than 1 GiB, a directory or a device
//   by errno if it cannot be read; DATA_LOSS, RESOURCE_EXHAUSTED: those of UnpackXz
absl::StatusOr<std::string> ReadText(const std::string& path);

}  // namespace infllm::services
