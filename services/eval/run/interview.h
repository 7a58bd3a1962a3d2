// Reads texts with a model in this process and asks questions about them, many at a time.
#pragma once

#include <atomic>
#include <span>

#include "absl/status/status.h"
#include "services/eval/run/subject.h"
#include "services/eval/tasks/sample.h"
#include "services/runtime/runtime.h"

namespace infllm::services {

// What texts have in common at their beginning is read once; answers are generated together, while
// the next texts are read. Events come as Subject::Ask says. A sample that fails for lack of room,
// or for a damaged block, is told by on_error, and the others go on.
absl::Status RunInterview(worker::ModelRuntime& model, EngineRuntime& runtime,
                          std::span<const Sample> samples, const SubjectEvents& events,
                          const std::atomic<bool>* cancel);

// What a sequence keeps: on the device, in the memory store's RAM, and on disk.
absl::Status MeasureMemory(const EngineRuntime& runtime, worker::SequenceId sequence,
                           Reading& reading);

}  // namespace infllm::services
