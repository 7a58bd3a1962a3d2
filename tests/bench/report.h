// What a benchmark has found, as a table or as JSON.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace infllm::bench {

class Report {
 public:
  // `wanted` may be empty.
  void Add(std::string what, double value, std::string unit, std::string wanted = "") {
    rows_.push_back({std::move(what), value, std::move(unit), std::move(wanted)});
  }
  void Print(bool json) const;

 private:
  struct Row {
    std::string what;
    double value;
    std::string unit, wanted;
  };
  std::vector<Row> rows_;
};

}  // namespace infllm::bench
