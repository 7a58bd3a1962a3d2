#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/eval/report/report.h"
#include "services/eval/report/tables.h"
#include "services/eval/report/text.h"

namespace infllm::services {
namespace {

std::string CellText(const TableCell& cell) {
  std::string text = EscapeMarkdown(cell.text);
  if (!cell.detail.empty()) absl::StrAppend(&text, " (", EscapeMarkdown(cell.detail), ")");
  if (cell.footnote > 0) absl::StrAppend(&text, " <sup>", cell.footnote, "</sup>");
  return text;
}

std::string TableText(const Table& table) {
  std::string text = absl::StrCat("**", EscapeMarkdown(table.caption), "**\n\n|");
  for (const std::string& column : table.columns) {
    absl::StrAppend(&text, " ", EscapeMarkdown(column), " |");
  }
  text += "\n|";
  for (size_t i = 0; i < table.columns.size(); ++i) {
    text += i < table.text_columns ? " --- |" : " ---: |";
  }
  for (const auto& row : table.rows) {
    text += "\n|";
    for (const TableCell& cell : row) absl::StrAppend(&text, " ", CellText(cell), " |");
  }
  text += "\n\n";
  for (size_t i = 0; i < table.footnotes.size(); ++i) {
    absl::StrAppend(&text, "<sup>", i + 1, "</sup> ", EscapeMarkdown(table.footnotes[i]),
                    i + 1 < table.footnotes.size() ? "<br>\n" : "\n\n");
  }
  return text;
}

}  // namespace

std::string MarkdownReport(const Records& records, const std::string& title) {
  const Summary summary = Summarize(records);
  const std::vector<Section> sections = Sections(summary);
  std::string text = absl::StrCat("# ", EscapeMarkdown(title), "\n\n");
  if (sections.empty()) return text + "No records.\n";
  for (const std::string& note : ReportNotes()) absl::StrAppend(&text, "- ", note, "\n");
  text += "\n";
  for (const Section& section : sections) {
    absl::StrAppend(&text, "## ", EscapeMarkdown(section.heading), "\n\n");
    for (const Table& table : section.tables) text += TableText(table);
  }
  text.pop_back();  // one newline at the end
  return text;
}

}  // namespace infllm::services
