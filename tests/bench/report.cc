#include "tests/bench/report.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"

namespace infllm::bench {

void Report::Print(bool json) const {
  if (json) {
    auto out = nlohmann::ordered_json::array();
    for (const Row& row : rows_) {
      out.push_back({{"what", row.what}, {"value", row.value}, {"unit", row.unit}});
      if (!row.wanted.empty()) out.back()["wanted"] = row.wanted;
    }
    absl::PrintF("%s\n", out.dump(1));
    return;
  }
  absl::PrintF("| what | value | unit | wanted |\n|---|--:|---|--:|\n");
  for (const Row& row : rows_) {
    absl::PrintF("| %s | %.4g | %s | %s |\n", row.what, row.value, row.unit, row.wanted);
  }
  std::fflush(stdout);
}

}  // namespace infllm::bench
