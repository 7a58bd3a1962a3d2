// The tasks behind task.h, one function each; tasks.cc lists them. Requests have been checked.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "services/eval/tasks/sample.h"
#include "services/eval/tasks/task.h"

namespace infllm::services {

using Samples = absl::StatusOr<std::vector<Sample>>;

// passkey_tasks.cc
Samples MakePasskey(const TaskRequest& request);
Samples MakeNumberString(const TaskRequest& request);
Samples MakeMultikey(const TaskRequest& request);

// infinitebench_tasks.cc
Samples MakeKvRetrieval(const TaskRequest& request);
Samples MakeKvRetrievalKeyFirst(const TaskRequest& request);
Samples MakeMathFind(const TaskRequest& request);

// niah_tasks.cc
Samples MakeNeedle(const TaskRequest& request);
Samples MakeNiahSingle1(const TaskRequest& request);
Samples MakeNiahSingle2(const TaskRequest& request);
Samples MakeNiahSingle3(const TaskRequest& request);
Samples MakeNiahMultikey1(const TaskRequest& request);
Samples MakeNiahMultikey2(const TaskRequest& request);
Samples MakeNiahMultikey3(const TaskRequest& request);
Samples MakeNiahMultivalue(const TaskRequest& request);
Samples MakeNiahMultiquery(const TaskRequest& request);

// ruler_tasks.cc
Samples MakeVariableTracking(const TaskRequest& request);
Samples MakeFrequentWords(const TaskRequest& request);
Samples MakeCommonWords(const TaskRequest& request);

// file_tasks.cc
Samples MakeLongChatLines(const TaskRequest& request);
Samples MakeLostInTheMiddleKv(const TaskRequest& request);
Samples MakeBabiInHaystack(const TaskRequest& request);

}  // namespace infllm::services
