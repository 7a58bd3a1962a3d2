// Records of an evaluation. Accepted ones are written as they were read, and can be reported.
#include "kernels/core/status_macros.h"
#include "services/eval/report/record.h"
#include "services/eval/report/report.h"
#include "tests/fuzz/fuzz_driver.h"

namespace infllm::services {
namespace {

std::string Write(const Records& records) {
  std::string lines;
  for (const auto& record : records.answers) lines += ToJsonLine(record) + "\n";
  for (const auto& record : records.perplexities) lines += ToJsonLine(record) + "\n";
  for (const auto& record : records.ingests) lines += ToJsonLine(record) + "\n";
  for (const auto& record : records.skips) lines += ToJsonLine(record) + "\n";
  return lines;
}

}  // namespace
}  // namespace infllm::services

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace infllm::services;
  const auto records = ParseRecords({reinterpret_cast<const char*>(data), size});
  if (!records.ok()) return 0;
  const std::string lines = Write(*records);
  const auto again = ParseRecords(lines);
  INFLLM_CHECK(again.ok());
  INFLLM_CHECK(Write(*again) == lines);
  INFLLM_CHECK(!MarkdownReport(*records, "fuzz").empty());
  INFLLM_CHECK(!HtmlReport(*records, "fuzz").empty());
  INFLLM_CHECK(!JsonReport(*records, "fuzz").empty());
  return 0;
}
