#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/eval/report/aggregate.h"
#include "services/eval/report/report.h"
#include "services/eval/report/svg.h"
#include "services/eval/report/tables.h"
#include "services/eval/report/text.h"

namespace infllm::services {
namespace {

// Outputs are foreign text. It is escaped; and should that fail, the policy lets nothing of it run
// or load.
constexpr char kHead[] = R"(<!DOCTYPE html>
<html lang="en" xmlns="http://www.w3.org/1999/xhtml">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<meta name="color-scheme" content="light dark"/>
)";

// Line colours after M. Okabe and K. Ito, told apart by the colour-blind too; on the light page
// darker, to be seen.
constexpr char kStyle[] = R"(<style>
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --soft: #5b6470; --line: #d9dde3;
  --band: #f5f7f9; --hatch: #b3bac4; --c0: #0072b2; --c1: #c04f00; --c2: #00805c; --c3: #a8487f;
  --c4: #9a6a00; --c5: #2a87bd; --c6: #444b54; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e4e7eb; --soft: #98a2ae;
  --line: #323943; --band: #1b2026; --hatch: #4c5563; --c0: #4aa3df; --c1: #f08a4b; --c2: #2fc79a;
  --c3: #df93bd; --c4: #e6b23e; --c5: #8ccff5; --c6: #b9c1cb; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: 1rem;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
a { color: var(--c0); }
nav ul, ul.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none;
  margin: .5rem 0; padding: 0; }
ul.legend { font-size: .85rem; }
ul.notes { color: var(--soft); font-size: .85rem; padding-left: 1.1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; font-size: 1rem; padding: .75rem 0 .25rem; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; white-space: nowrap; }
thead th { vertical-align: bottom; color: var(--soft); font-weight: 600; }
th.text, td.text { text-align: left; }
tbody th { font-weight: 500; }
small { display: block; color: var(--soft); font-size: .75rem; }
tbody th, thead th:first-child { position: sticky; left: 0; background: var(--page); }
tbody th { max-width: 40vw; white-space: normal; overflow-wrap: anywhere; }
.quotes td.text { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 5rem;
  max-width: 20rem; unicode-bidi: isolate; }
ol.footnotes { color: var(--soft); font-size: .85rem; margin: .5rem 0; padding-left: 1.4rem; }
details { margin: .75rem 0; }
summary { cursor: pointer; font-weight: 600; }
.maps { display: flex; flex-wrap: wrap; gap: 1rem 2rem; }
figure { margin: 0; max-width: 100%; overflow-x: auto; }
figcaption { font-size: .85rem; font-weight: 600; margin-bottom: .25rem; overflow-wrap: anywhere; }
svg { display: block; font: 12px system-ui, sans-serif; }
svg.defs { position: absolute; }
svg.scale { margin: .25rem 0 .75rem; }
svg.map { max-width: 100%; height: auto; }
svg.chart { width: 100%; max-width: 880px; height: auto; }
ul.legend svg { display: inline; vertical-align: middle; margin-right: .3rem; }
svg text { fill: var(--ink); }
svg .tick, svg .axis { fill: var(--soft); }
svg .mid, svg .num { text-anchor: middle; }
svg .end { text-anchor: end; }
svg .num { font-variant-numeric: tabular-nums; }
svg .num.dark { fill: #14171b; }
svg .num.light { fill: #fff; }
svg .none { fill: none; stroke: var(--line); }
svg .skipped { stroke: var(--line); }
.hatch-back { fill: var(--band); }
.hatch-line { fill: var(--hatch); }
svg .grid { stroke: var(--line); fill: none; }
.series path { fill: none; stroke: var(--series); stroke-width: 2; stroke-linejoin: round; }
.series circle { fill: var(--series); stroke: var(--page); }
.series .beyond { fill: var(--series); stroke: none; }
.dashed path { stroke-dasharray: 7 4; }
.label path { fill: none; stroke: var(--series); stroke-width: 1; stroke-dasharray: 1 3; }
svg .label .name { fill: var(--series); }
)";

std::string Style() {
  std::string style = kStyle;
  for (size_t i = 0; i < kSeriesColors; ++i) {
    absl::StrAppend(&style, ".s", i, " { --series: var(--c", i, "); }\n");
  }
  return style + "</style>\n";
}

std::string CellHtml(const TableCell& cell, bool is_text, bool is_header) {
  const char* name = is_header ? "th" : "td";
  std::string html = absl::StrCat("<", name, is_header ? " scope=\"row\"" : "",
                                  is_text ? " class=\"text\"" : "", ">", EscapeXml(cell.text));
  if (cell.footnote > 0) absl::StrAppend(&html, "<sup>", cell.footnote, "</sup>");
  if (!cell.detail.empty()) absl::StrAppend(&html, "<small>", EscapeXml(cell.detail), "</small>");
  return absl::StrCat(html, "</", name, ">");
}

// `css_class` may be empty.
std::string TableHtml(const Table& table, const std::string& css_class, bool with_caption) {
  std::string html = "<div class=\"scroll\"><table";
  if (!css_class.empty()) absl::StrAppend(&html, " class=\"", css_class, "\"");
  html += ">\n";
  if (with_caption) absl::StrAppend(&html, "<caption>", EscapeXml(table.caption), "</caption>\n");
  html += "<thead><tr>";
  for (size_t i = 0; i < table.columns.size(); ++i) {
    absl::StrAppend(&html, "<th scope=\"col\"", i < table.text_columns ? " class=\"text\"" : "",
                    ">", EscapeXml(table.columns[i]), "</th>");
  }
  html += "</tr></thead>\n<tbody>\n";
  for (const auto& row : table.rows) {
    html += "<tr>";
    for (size_t i = 0; i < row.size(); ++i) {
      html += CellHtml(row[i], i < table.text_columns, i == 0);
    }
    html += "</tr>\n";
  }
  html += "</tbody></table></div>\n";
  if (table.footnotes.empty()) return html;
  html += "<ol class=\"footnotes\">\n";
  for (const std::string& note : table.footnotes) {
    absl::StrAppend(&html, "<li>", EscapeXml(note), "</li>\n");
  }
  return html + "</ol>\n";
}

std::string FoldedTableHtml(const Table& table, const std::string& css_class) {
  return absl::StrCat("<details><summary>", EscapeXml(table.caption), "</summary>\n",
                      TableHtml(table, css_class, /*with_caption=*/false), "</details>\n");
}

HeatmapCell MakeCell(const Share& share, const Cell& cell, const std::string& where) {
  const bool skipped = !cell.skip_reason.empty();
  return {.share = share,
          .skipped = skipped,
          .tooltip = absl::StrCat(
              where, ": ",
              skipped ? absl::StrCat("not run: ", cell.skip_reason) : DescribeShare(share))};
}

std::vector<std::string> LengthLabels(const TaskSummary& task) {
  std::vector<std::string> labels;
  for (const int64_t length : task.lengths) labels.push_back(FormatLength(length));
  return labels;
}

// Lengths by depths of one configuration.
Heatmap DepthHeatmap(const TaskSummary& task, size_t config, Share AnswerShares::*share) {
  Heatmap map{.description = absl::StrCat(task.name, ", ", task.configs[config],
                                          ": per cent by length (across) and depth (down)"),
              .columns = LengthLabels(task)};
  for (size_t row = 0; row < task.depths.size(); ++row) {
    map.rows.push_back(absl::StrCat(FormatPercent(task.depths[row]), "%"));
    if (map.rows.back().ends_with(".0%")) map.rows.back().erase(map.rows.back().size() - 3, 2);
    std::vector<HeatmapCell>& cells = map.cells.emplace_back();
    for (size_t i = 0; i < task.lengths.size(); ++i) {
      const Cell& cell = task.cells[config][i];
      cells.push_back(MakeCell(
          cell.by_depth[row].*share, cell,
          absl::StrCat(task.configs[config], ", ", map.columns[i], ", depth ", map.rows[row])));
    }
  }
  return map;
}

// Lengths by configurations, of a task where depth does not apply.
Heatmap ConfigHeatmap(const TaskSummary& task, Share AnswerShares::*share) {
  constexpr size_t kMostCharacters = 32;
  Heatmap map{.description =
                  absl::StrCat(task.name, ": per cent by length (across) and configuration (down)"),
              .columns = LengthLabels(task)};
  for (size_t config = 0; config < task.configs.size(); ++config) {
    map.rows.push_back(Shorten(task.configs[config], kMostCharacters));
    std::vector<HeatmapCell>& cells = map.cells.emplace_back();
    for (size_t i = 0; i < task.lengths.size(); ++i) {
      const Cell& cell = task.cells[config][i];
      cells.push_back(MakeCell(cell.all.*share, cell,
                               absl::StrCat(task.configs[config], ", ", map.columns[i])));
    }
  }
  return map;
}

bool HasAny(const std::vector<Cell>& cells, Share AnswerShares::*share) {
  return std::any_of(cells.begin(), cells.end(),
                     [&](const Cell& cell) { return (cell.all.*share).n > 0; });
}

std::string HeatmapsHtml(const TaskSummary& task, const std::string& heading,
                         Share AnswerShares::*share) {
  if (std::none_of(task.cells.begin(), task.cells.end(),
                   [&](const auto& cells) { return HasAny(cells, share); })) {
    return "";
  }
  std::string html =
      absl::StrCat("<h3>", heading, "</h3>\n", ColorScaleSvg(), "<div class=\"maps\">\n");
  if (task.depths.empty()) {
    absl::StrAppend(&html, "<figure>", HeatmapSvg(ConfigHeatmap(task, share)), "</figure>\n");
  }
  for (size_t config = 0; config < task.configs.size() && !task.depths.empty(); ++config) {
    if (!HasAny(task.cells[config], share)) continue;
    absl::StrAppend(&html, "<figure><figcaption>", EscapeXml(task.configs[config]), "</figcaption>",
                    HeatmapSvg(DepthHeatmap(task, config, share)), "</figure>\n");
  }
  return html + "</div>\n";
}

std::string TaskHtml(const TaskSummary& task) {
  const std::vector<Table> tables = TaskTables(task);
  std::string html;
  if (!tables.empty()) html += TableHtml(tables.front(), "", /*with_caption=*/true);
  const std::string by = task.depths.empty() ? " by length (across) and configuration"
                                             : " by length (across) and depth";
  html += HeatmapsHtml(task, absl::StrCat("Score", by), &AnswerShares::score);
  html += HeatmapsHtml(task, absl::StrCat("Evidence found", by), &AnswerShares::recall);
  for (size_t i = 1; i < tables.size(); ++i) html += FoldedTableHtml(tables[i], "");
  if (!task.worst.empty()) html += FoldedTableHtml(WorstAnswersTable(task), "quotes");
  return html;
}

std::string PerplexityHtml(const PerplexitySummary& perplexity,
                           const std::vector<std::string>& configs) {
  std::string html = "<ul class=\"legend\">\n";
  for (const PerplexityCurve& curve : perplexity.curves) {
    absl::StrAppend(&html, "<li>", LineSampleSvg(curve.config), EscapeXml(configs[curve.config]),
                    "</li>\n");
  }
  absl::StrAppend(&html, "</ul>\n<figure>", PerplexitySvg(perplexity, configs), "</figure>\n",
                  FoldedTableHtml(PerplexityTable(perplexity, configs), ""));
  return html;
}

struct Section {
  std::string heading;
  std::string html;
};

}  // namespace

std::string HtmlReport(const Records& records, const std::string& title) {
  const Summary summary = Summarize(records);
  std::vector<Section> sections;
  for (const TaskSummary& task : summary.tasks) sections.push_back({task.name, TaskHtml(task)});
  for (const PerplexitySummary& perplexity : summary.perplexities) {
    sections.push_back({absl::StrCat("Perplexity of ", perplexity.text, ", ",
                                     FormatLength(perplexity.length), " tokens"),
                        PerplexityHtml(perplexity, summary.configs)});
  }
  if (summary.perplexity_runs.has_value()) {
    std::string tables;
    for (const Table& table : PerplexityRunTables(*summary.perplexity_runs)) {
      tables += TableHtml(table, "", /*with_caption=*/true);
    }
    sections.push_back({"Perplexity runs", std::move(tables)});
  }

  std::string html =
      absl::StrCat(kHead, "<title>", EscapeXml(title), "</title>\n", Style(), "</head>\n<body>\n",
                   SvgDefinitions(), "<h1>", EscapeXml(title), "</h1>\n");
  if (sections.empty()) return html + "<p>No records.</p>\n</body>\n</html>\n";
  html += "<nav><ul>\n";
  for (size_t i = 0; i < sections.size(); ++i) {
    absl::StrAppend(&html, "<li><a href=\"#section-", i + 1, "\">", EscapeXml(sections[i].heading),
                    "</a></li>\n");
  }
  html += "</ul></nav>\n<ul class=\"notes\">\n";
  for (const std::string& note : ReportNotes()) absl::StrAppend(&html, "<li>", note, "</li>\n");
  html += "</ul>\n";
  for (size_t i = 0; i < sections.size(); ++i) {
    absl::StrAppend(&html, "<section id=\"section-", i + 1, "\">\n<h2>",
                    EscapeXml(sections[i].heading), "</h2>\n", sections[i].html, "</section>\n");
  }
  return html + "</body>\n</html>\n";
}

}  // namespace infllm::services
