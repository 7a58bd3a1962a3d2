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

std::string FormatInterval(const Share& share) {
  const Interval interval = share.interval();
  return absl::StrCat(FormatPercent(interval.low), "–", FormatPercent(interval.high));
}

// `with_n`: the number of answers is told in each cell.
TableCell ShareCell(const Share& share, bool with_n) {
  if (share.n == 0) return {kNothing};
  std::string detail = FormatInterval(share);
  if (with_n) absl::StrAppend(&detail, ", n=", share.n);
  return {FormatPercent(share.mean()), std::move(detail)};
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

template <typename Format>
TableCell OrNothing(const std::optional<double>& value, Format format) {
  return {value.has_value() ? format(*value) : kNothing};
}
TableCell Bytes(bool known, double bytes) {
  return {known ? FormatByteSize(static_cast<int64_t>(bytes)) : kNothing};
}

// Rows by length, then by configuration, of the cells that `numbers` has something for.
Table CellTable(const TaskSummary& task, const char* caption,
                const std::vector<std::string>& columns,
                std::vector<TableCell> (*numbers)(const Cell&)) {
  Table table{.caption = caption, .columns = {"length", "configuration"}, .text_columns = 2};
  table.columns.insert(table.columns.end(), columns.begin(), columns.end());
  for (size_t i = 0; i < task.lengths.size(); ++i) {
    for (size_t config = 0; config < task.configs.size(); ++config) {
      const std::vector<TableCell> cells = numbers(task.cells[config][i]);
      if (cells.empty()) continue;
      auto& row = table.rows.emplace_back();
      row = {{FormatLength(task.lengths[i])}, {task.configs[config]}};
      row.insert(row.end(), cells.begin(), cells.end());
    }
  }
  return table;
}

Table RetrievalTable(const TaskSummary& task) {
  return CellTable(
      task, "Retrieval", {"evidence found, %", "kept, %", "layers", "median rank"},
      [](const Cell& cell) -> std::vector<TableCell> {
        if (cell.all.recall.n == 0) return {};
        return {ShareCell(cell.all.recall, /*with_n=*/true),
                {FormatPercent(cell.all.kept.mean())},
                OrNothing(cell.mean_layers(), [](double v) { return absl::StrFormat("%.1f", v); }),
                OrNothing(cell.median_rank(), FormatNumber)};
      });
}

Table ResourceTable(const TaskSummary& task) {
  return CellTable(task, "Time and memory",
                   {"texts", "read, tokens/s", "read, s", "answer, s", "peak RSS", "store in RAM",
                    "store on disk", "block cache hits, %", "fetched per answer"},
                   [](const Cell& cell) -> std::vector<TableCell> {
                     const bool read = cell.texts > 0;
                     const int64_t answers = cell.all.score.n;
                     if (!read && answers == 0) return {};
                     const std::optional<double> hits = cell.cache_hit_share();
                     return {
                         {absl::StrCat(cell.texts)},
                         OrNothing(cell.read_tokens_per_second(), FormatNumber),
                         {read ? FormatNumber(cell.read_seconds) : kNothing},
                         OrNothing(cell.answer_seconds(), FormatNumber),
                         Bytes(cell.peak_rss_bytes > 0, static_cast<double>(cell.peak_rss_bytes)),
                         Bytes(read, static_cast<double>(cell.ram_bytes)),
                         Bytes(read, static_cast<double>(cell.cold_bytes)),
                         OrNothing(hits, FormatPercent),
                         Bytes(hits.has_value(), cell.miss_bytes / static_cast<double>(answers))};
                   });
}

Table PerplexityTable(const PerplexitySummary& perplexity,
                      const std::vector<std::string>& configs) {
  Table table{.caption = "Perplexity by position", .columns = {"positions"}};
  std::map<std::pair<int64_t, int64_t>, std::vector<TableCell>> rows;
  for (const auto& [config, curve] : perplexity.curves) {
    table.columns.push_back(configs[config]);
    for (const auto& [range, nll] : curve) {
      rows[range].resize(table.columns.size() - 1, {kNothing});
      rows[range].back() = {FormatPerplexity(nll)};
    }
  }
  for (auto& [range, cells] : rows) {
    cells.resize(perplexity.curves.size(), {kNothing});
    cells.insert(cells.begin(),
                 {absl::StrCat(FormatLength(range.first), "–", FormatLength(range.second))});
    table.rows.push_back(std::move(cells));
  }
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

}  // namespace

std::string DescribeShare(const Share& share) {
  if (share.n == 0) return "no answers";
  return absl::StrCat(FormatPercent(share.mean()), "%, n=", share.n, ", 95% interval ",
                      FormatInterval(share), "%");
}

std::vector<Section> Sections(const Summary& summary) {
  std::vector<Section> sections;
  for (const TaskSummary& task : summary.tasks) {
    sections.push_back({.heading = task.name,
                        .tables = {ScoreTable(task), RetrievalTable(task), ResourceTable(task)},
                        .task = &task});
  }
  for (const PerplexitySummary& perplexity : summary.perplexities) {
    sections.push_back({.heading = absl::StrCat("Perplexity of ", perplexity.text, ", ",
                                                FormatLength(perplexity.length), " tokens"),
                        .tables = {PerplexityTable(perplexity, summary.configs)},
                        .perplexity = &perplexity});
  }
  if (const auto& runs = summary.perplexity_runs) {
    sections.push_back(
        {.heading = "Perplexity runs", .tables = {NotRunTable(*runs), ResourceTable(*runs)}});
  }
  for (Section& section : sections) {
    std::erase_if(section.tables, [](const Table& table) { return table.rows.empty(); });
  }
  return sections;
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
