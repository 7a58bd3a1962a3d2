#pragma once

#include <cstdint>
#include <memory>

#include "services/eval/run/subject.h"
#include "services/runtime/runtime.h"

namespace infllm::services {

// A model in this process under one attention policy. Samples that begin with the same tokens share
// the reading of them, to a multiple of exec_block, so answers are those of a sequence that reads
// the sample alone, to the bit. `model` has a tokenizer and must outlive the subject.
//
// CannotRead() refuses texts above `max_full_tokens` under full attention, whose time grows with
// the square of the length; it then measures for about a second, so that it can tell how long it
// would take. It also refuses a text whose keys and values would not fit in memory.
std::unique_ptr<Subject> NewLocalSubject(worker::ModelRuntime& model, EngineRuntime runtime,
                                         int64_t max_full_tokens);

}  // namespace infllm::services
