// The tables of a report, before they are written as Markdown or HTML.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "services/eval/report/aggregate.h"

namespace infllm::services {

struct TableCell {
  std::string text;
  std::string detail;   // shown smaller
  size_t footnote = 0;  // counted from 1; 0: none
};

// All strings are plain text: escape them.
struct Table {
  std::string caption;
  std::vector<std::string> columns;
  size_t text_columns = 1;  // the first ones; the others hold numbers
  std::vector<std::vector<TableCell>> rows;
  std::vector<std::string> footnotes;
};

// What a report says under one heading. Either is set, or neither.
struct Section {
  std::string heading;
  std::vector<Table> tables;  // that have rows
  const TaskSummary* task = nullptr;
  const PerplexitySummary* perplexity = nullptr;
};

// Points into `summary`.
std::vector<Section> Sections(const Summary& summary);
// Of TaskSummary::worst.
Table WorstAnswersTable(const TaskSummary& task);

// "93.1%, n=100, 95% interval 86.2–96.7%": for tooltips.
std::string DescribeShare(const Share& share);

// What the numbers mean, a sentence each.
std::vector<std::string> ReportNotes();

}  // namespace infllm::services
