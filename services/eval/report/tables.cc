#include "services/eval/report/tables.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "services/common/byte_size.h"
#include "services/eval/report/text.h"

namespace infllm::services {
namespace {

constexpr char kNothing[] = "-";

// `with_n`: the number of answers is told in each cell.
TableCell ShareCell(const Share& share, bool with_n) {
  if (share.n == 0) return {kNothing};
  std::string detail =
      absl::StrCat(FormatPercent(share.interval.low), "–", FormatPercent(share.interval.high));
  if (with_n) absl::StrAppend(&detail, ", n=", share.n);
  return {FormatPercent(share.mean), std::move(detail)};
}

// The number of `text` among the footnotes, where it is added if new.
size_t Footnote(const std::string& text, Table& table) {
  const auto it = std::find(table.footnotes.begin(), table.footnotes.end(), text);
  const size_t number = static_cast<size_t>(it - table.footnotes.begin()) + 1;
  if (it == table.footnotes.end()) table.footnotes.push_back(text);
  return number;
}

Table ScoreTable(const TaskSummary& task) {
  // Told once where it is the same for all.
  std::set<int64_t> counts;
  for (const auto& cells : task.cells) {
    for (const Cell& cell : cells) counts.insert(cell.all.score.n);
  }
  counts.erase(0);
  const bool with_n = counts.size() > 1;

  Table table{.caption = "Score, %", .columns = {"configuration"}};
  if (counts.size() == 1) absl::StrAppend(&table.caption, ", n=", *counts.begin(), " each");
  for (const int64_t length : task.lengths) table.columns.push_back(FormatLength(length));
  if (!task.effective_lengths.empty()) table.columns.push_back("effective length");
  for (size_t config = 0; config < task.configs.size(); ++config) {
    std::vector<TableCell> row = {{task.configs[config]}};
    for (const Cell& cell : task.cells[config]) {
      row.push_back(ShareCell(cell.all.score, with_n));
      if (!cell.skip_reason.empty()) row.back().footnote = Footnote(cell.skip_reason, table);
    }
    if (!task.effective_lengths.empty()) {
      const int64_t effective = task.effective_lengths[config];
      const bool any = std::any_of(task.cells[config].begin(), task.cells[config].end(),
                                   [](const Cell& cell) { return cell.all.score.n > 0; });
      row.push_back({effective > 0 ? FormatLength(effective) : any ? "none" : kNothing});
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

Table NotRunTable(const TaskSummary& task) {
  Table table{.caption = "Not run", .columns = {"configuration", "length", "why"}};
  table.text_columns = table.columns.size();
  for (size_t config = 0; config < task.configs.size(); ++config) {
    for (size_t i = 0; i < task.lengths.size(); ++i) {
      const Cell& cell = task.cells[config][i];
      if (cell.skip_reason.empty()) continue;
      table.rows.push_back(
          {{task.configs[config]}, {FormatLength(task.lengths[i])}, {cell.skip_reason}});
    }
  }
  return table;
}

std::string OrNothing(const std::optional<double>& value, std::string (*format)(double)) {
  return value.has_value() ? format(*value) : kNothing;
}
std::string OneDecimal(double value) { return absl::StrFormat("%.1f", value); }
std::string ThreeDigits(double value) {
  return value < 100 ? absl::StrFormat("%.3g", value) : FormatCount(value);
}

// Rows by length, then by configuration, of the cells that make_row() has something for.
template <typename MakeRow>
void AddRows(const TaskSummary& task, MakeRow make_row, Table& table) {
  for (size_t i = 0; i < task.lengths.size(); ++i) {
    for (size_t config = 0; config < task.configs.size(); ++config) {
      std::vector<TableCell> numbers = make_row(task.cells[config][i]);
      if (numbers.empty()) continue;
      std::vector<TableCell> row = {{FormatLength(task.lengths[i])}, {task.configs[config]}};
      row.insert(row.end(), numbers.begin(), numbers.end());
      table.rows.push_back(std::move(row));
    }
  }
}

Table RetrievalTable(const TaskSummary& task) {
  Table table{.caption = "Retrieval",
              .columns = {"length", "configuration", "evidence found, %", "kept, %", "layers",
                          "median rank"},
              .text_columns = 2};
  AddRows(
      task,
      [](const Cell& cell) -> std::vector<TableCell> {
        if (cell.all.recall.n == 0) return {};
        return {ShareCell(cell.all.recall, /*with_n=*/true),
                {FormatPercent(cell.all.kept.mean)},
                {OrNothing(cell.mean_layers, OneDecimal)},
                {OrNothing(cell.median_rank, ThreeDigits)}};
      },
      table);
  return table;
}

Table ResourceTable(const TaskSummary& task) {
  Table table{.caption = "Time and memory",
              .columns = {"length", "configuration", "texts", "read, tokens/s", "read, s",
                          "answer, s", "peak RSS", "store in RAM", "store on disk",
                          "block cache hits, %", "fetched per answer"},
              .text_columns = 2};
  AddRows(
      task,
      [](const Cell& cell) -> std::vector<TableCell> {
        const bool read = cell.texts > 0;
        const int64_t answers = cell.all.score.n;
        if (!read && answers == 0) return {};
        const std::optional<double> hits = cell.cache_hit_share();
        const auto bytes = [&](int64_t size) { return read ? FormatByteSize(size) : kNothing; };
        return {{absl::StrCat(cell.texts)},
                {OrNothing(cell.read_tokens_per_second(), ThreeDigits)},
                {read ? ThreeDigits(cell.read_seconds) : kNothing},
                {answers > 0 ? ThreeDigits(cell.answer_seconds) : kNothing},
                {cell.peak_rss_bytes > 0 ? bytes(cell.peak_rss_bytes) : kNothing},
                {bytes(cell.ram_bytes)},
                {bytes(cell.cold_bytes)},
                {OrNothing(hits, FormatPercent)},
                {hits.has_value() && answers > 0
                     ? FormatByteSize(
                           static_cast<int64_t>(cell.miss_bytes / static_cast<double>(answers)))
                     : kNothing}};
      },
      table);
  return table;
}

std::string DescribeRetrieval(const std::optional<Retrieval>& retrieval) {
  if (!retrieval.has_value()) return kNothing;
  if (retrieval->in_window) return "in the window";
  if (retrieval->layers.empty()) return "not found";
  return absl::StrCat("found in ", retrieval->layers.size(),
                      retrieval->layers.size() == 1 ? " layer" : " layers", ", best rank ",
                      retrieval->best_rank, ", kept for ", FormatPercent(retrieval->kept), "%");
}

std::vector<Table> WithRows(std::vector<Table> tables) {
  std::erase_if(tables, [](const Table& table) { return table.rows.empty(); });
  return tables;
}

}  // namespace

std::string DescribeShare(const Share& share) {
  if (share.n == 0) return "no answers";
  return absl::StrCat(FormatPercent(share.mean), "%, n=", share.n, ", 95% interval ",
                      FormatPercent(share.interval.low), "–", FormatPercent(share.interval.high),
                      "%");
}

std::vector<Table> TaskTables(const TaskSummary& task) {
  return WithRows({ScoreTable(task), RetrievalTable(task), ResourceTable(task)});
}

std::vector<Table> PerplexityRunTables(const TaskSummary& task) {
  return WithRows({NotRunTable(task), ResourceTable(task)});
}

Table PerplexityTable(const PerplexitySummary& perplexity,
                      const std::vector<std::string>& configs) {
  Table table{.caption = "Perplexity by position", .columns = {"positions"}};
  std::map<std::pair<int64_t, int64_t>, std::vector<std::string>> rows;
  for (size_t i = 0; i < perplexity.curves.size(); ++i) {
    table.columns.push_back(configs[perplexity.curves[i].config]);
    for (const PerplexityRecord& point : perplexity.curves[i].points) {
      std::vector<std::string>& row = rows[{point.begin, point.end}];
      row.resize(perplexity.curves.size(), kNothing);
      row[i] = FormatPerplexity(point.mean_nll);
    }
  }
  for (const auto& [range, texts] : rows) {
    std::vector<TableCell> row = {
        {absl::StrCat(FormatLength(range.first), "–", FormatLength(range.second))}};
    for (const std::string& text : texts) row.push_back({text});
    table.rows.push_back(std::move(row));
  }
  return table;
}

Table WorstAnswersTable(const TaskSummary& task) {
  constexpr size_t kMostCharacters = 200;
  Table table{.caption = absl::StrCat("Wrong answers: ", task.worst.size(), " of ", task.wrong),
              .columns = {"configuration", "length", "depth", "question", "expected", "got",
                          "score, %", "evidence"}};
  table.text_columns = table.columns.size();
  for (const AnswerRecord* answer : task.worst) {
    const std::string question = answer->label.empty() ? answer->sample : answer->label;
    table.rows.push_back(
        {{answer->config},
         {FormatLength(answer->length)},
         {answer->depth < 0 ? kNothing : absl::StrCat(FormatPercent(answer->depth), "%")},
         {Shorten(question, kMostCharacters)},
         {Shorten(absl::StrJoin(answer->answers, ", "), kMostCharacters)},
         {Shorten(answer->output, kMostCharacters)},
         {FormatPercent(answer->score)},
         {DescribeRetrieval(answer->retrieval)}});
  }
  return table;
}

std::vector<std::string> ReportNotes() {
  return {
      "Lengths are in tokens; K is 1024 of them and M is 1024K.",
      "With each percentage come its 95% interval (Wilson) and the number n of answers.",
      absl::StrCat("The effective length is the last one with a score of ",
                   FormatPercent(kEffectiveScore), "% or more (RULER)."),
      "Evidence is found if a selected block holds it, or if it never left the window; kept is the "
      "share of the answer's tokens for which some layer had it selected; layers is "
      "how many selected it on average and rank its best place among the selected blocks, both "
      "of the answers whose evidence had left the window.",
  };
}

}  // namespace infllm::services
