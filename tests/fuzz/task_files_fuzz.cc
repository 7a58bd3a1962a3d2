// The benchmarks' own files. Whatever is accepted can be indexed as the header says.
#include <string_view>

#include "kernels/core/status_macros.h"
#include "services/eval/tasks/task_files.h"
#include "tests/fuzz/fuzz_driver.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto records = infllm::services::ParseLongChatLines(text); records.ok()) {
    INFLLM_CHECK(!records->empty());
    for (const auto& record : *records) {
      INFLLM_CHECK(record.lines.at(record.asked).starts_with("line " + record.name + ":"));
      INFLLM_CHECK(!record.answer.empty());
    }
  }
  if (const auto records = infllm::services::ParseKeyValueRecords(text); records.ok()) {
    INFLLM_CHECK(!records->empty());
    for (const auto& record : *records) {
      INFLLM_CHECK(record.pairs.size() >= 2 && record.asked < record.pairs.size());
      INFLLM_CHECK(!record.pairs[record.asked].second.empty());
    }
  }
  if (const auto questions = infllm::services::ParseBabi(text); questions.ok()) {
    INFLLM_CHECK(!questions->empty());
    for (const auto& question : *questions) {
      INFLLM_CHECK(!question.question.empty() && !question.answer.empty());
      for (const size_t fact : question.supporting) INFLLM_CHECK(fact < question.facts.size());
    }
  }
  return 0;
}
