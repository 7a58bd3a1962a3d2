// What a benchmark has found, as a table or as JSON.
#pragma once

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"

namespace infllm::bench {

class Report {
 public:
  // `wanted` may be empty.
  void Add(std::string what, double value, std::string unit, std::string wanted = "") {
    rows_.push_back({std::move(what), value, std::move(unit), std::move(wanted)});
  }
  void Print(bool json) const {
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

 private:
  struct Row {
    std::string what;
    double value;
    std::string unit, wanted;
  };
  std::vector<Row> rows_;
};

}  // namespace infllm::bench
