#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/eval/report/aggregate.h"
#include "services/eval/report/report.h"
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

// Colours by their role in the browser, so that the page is dark where the reader's others are.
constexpr char kStyle[] = R"(<style>
:root { color-scheme: light dark; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: Canvas; color: CanvasText;
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; padding-top: 1rem; border-top: 1px solid #8886; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; }
ul.notes, small { opacity: .7; font-size: .85rem; }
small { display: block; }
details { margin: .75rem 0; max-width: 100%; overflow-x: auto; }
summary, caption { font-weight: 600; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid #8886; text-align: right;
  vertical-align: top; white-space: nowrap; }
th.text, td.text { text-align: left; white-space: pre-wrap; max-width: 20rem;
  unicode-bidi: isolate; }
.maps { display: flex; flex-wrap: wrap; gap: 0 2rem; overflow-x: auto; }
.map { border-collapse: separate; border-spacing: 2px; }
.map td, .map th { padding: .25rem .4rem; border: 0; font-weight: normal; text-align: center;
  min-width: 2.2rem; background: #8882; }
.map th { background: none; }
.map .skipped { background: repeating-linear-gradient(45deg, #8888 0 2px, #8882 2px 6px); }
svg { display: block; max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: CanvasText; }
svg .mid { text-anchor: middle; }
svg .end { text-anchor: end; }
svg .name { fill: inherit; }
svg .none { fill: none; stroke: #8886; }
</style>
)";

// Cividis (J. R. Nuñez, C. R. Anderton, R. S. Renslow, PLoS ONE 13(7), 2018; matplotlib's table,
// CC0) at even steps: as even and ordered to colour-blind readers as to others.
constexpr std::array<uint32_t, 17> kColors = {
    0x00224e, 0x002e6a, 0x1a386f, 0x32436d, 0x434e6c, 0x535a6d, 0x61656f, 0x6f7073, 0x7d7c78,
    0x8c8878, 0x9b9476, 0xaba072, 0xbcae6c, 0xcdbb63, 0xdec958, 0xf0d846, 0xfee838};
constexpr size_t kFirstBright = 8;  // from here on, dark text reads better

std::string CellHtml(const TableCell& cell, bool is_text) {
  std::string html = absl::StrCat("<td", is_text ? " class=\"text\">" : ">", EscapeXml(cell.text));
  if (cell.footnote > 0) absl::StrAppend(&html, "<sup>", cell.footnote, "</sup>");
  if (!cell.detail.empty()) absl::StrAppend(&html, "<small>", EscapeXml(cell.detail), "</small>");
  return html + "</td>";
}

// `open`: not folded.
std::string TableHtml(const Table& table, bool open) {
  std::string html = absl::StrCat("<details", open ? " open=\"open\"" : "", "><summary>",
                                  EscapeXml(table.caption), "</summary>\n<table>\n<tr>");
  for (size_t i = 0; i < table.columns.size(); ++i) {
    absl::StrAppend(&html, i < table.text_columns ? "<th class=\"text\">" : "<th>",
                    EscapeXml(table.columns[i]), "</th>");
  }
  for (const auto& row : table.rows) {
    html += "</tr>\n<tr>";
    for (size_t i = 0; i < row.size(); ++i) html += CellHtml(row[i], i < table.text_columns);
  }
  html += "</tr>\n</table>\n";
  for (size_t i = 0; i < table.footnotes.size(); ++i) {
    absl::StrAppend(&html, "<small><sup>", i + 1, "</sup> ", EscapeXml(table.footnotes[i]),
                    "</small>\n");
  }
  return html + "</details>\n";
}

std::string HeatHtml(const Share& share, bool skipped, const std::string& tooltip) {
  std::string style = skipped ? "class=\"skipped\"" : "", number;
  if (share.n > 0) {
    const auto color = static_cast<size_t>(std::lround(share.mean() * (kColors.size() - 1)));
    style = absl::StrFormat("style=\"background:#%06x;color:%s\"", kColors[color],
                            color < kFirstBright ? "#fff" : "#14171b");
    number = absl::StrFormat("%.0f", 100 * share.mean());
  }
  return absl::StrCat("<td ", style, " title=\"", EscapeXml(tooltip), "\">", number, "</td>");
}

// A share by length (across) and depth (down) of one configuration; without `config` by length and
// configuration.
std::string HeatmapHtml(const TaskSummary& task, std::optional<size_t> config,
                        Share AnswerShares::*share) {
  std::string html = absl::StrCat("<table class=\"map\"><caption>",
                                  config ? EscapeXml(task.configs[*config]) : "", "</caption>\n");
  for (size_t row = 0; row < (config ? task.depths.size() : task.configs.size()); ++row) {
    const std::string& name = task.configs[config.value_or(row)];
    const std::string label = config ? absl::StrCat(100 * task.depths[row], "%") : name;
    absl::StrAppend(&html, "<tr><th>", EscapeXml(label), "</th>");
    for (size_t i = 0; i < task.lengths.size(); ++i) {
      const Cell& cell = task.cells[config.value_or(row)][i];
      const Share& value = (config ? cell.by_depth[row] : cell.all).*share;
      const bool skipped = !cell.skip_reason.empty();
      html += HeatHtml(
          value, skipped,
          absl::StrCat(name, ", ", FormatLength(task.lengths[i]), config ? ", depth " + label : "",
                       ": ", skipped ? "not run: " + cell.skip_reason : DescribeShare(value)));
    }
    html += "</tr>\n";
  }
  html += "<tr><th></th>";
  for (const int64_t length : task.lengths) {
    absl::StrAppend(&html, "<th>", FormatLength(length), "</th>");
  }
  return html + "</tr></table>\n";
}

std::string HeatmapsHtml(const TaskSummary& task, const char* what, Share AnswerShares::*share) {
  const auto has_any = [&](const std::vector<Cell>& cells) {
    return std::any_of(cells.begin(), cells.end(),
                       [&](const Cell& cell) { return (cell.all.*share).n > 0; });
  };
  if (std::none_of(task.cells.begin(), task.cells.end(), has_any)) return "";
  std::string html = absl::StrCat("<h3>", what, " by length (across) and ",
                                  task.depths.empty() ? "configuration" : "depth",
                                  "</h3>\n<div class=\"maps\">\n");
  if (task.depths.empty()) html += HeatmapHtml(task, std::nullopt, share);
  for (size_t config = 0; config < task.configs.size() && !task.depths.empty(); ++config) {
    if (has_any(task.cells[config])) html += HeatmapHtml(task, config, share);
  }
  return html + "</div>\n";
}

// M. Okabe and K. Ito's, told apart by the colour-blind too.
constexpr std::array<const char*, 7> kLineColors = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                    "#e69f00", "#56b4e9", "#888888"};

std::string Text(double x, double y, const char* css_class, const std::string& text) {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">%s</text>\n", x, y, css_class,
                         EscapeXml(text));
}

// Logarithms that are to be placed between two pixels; values beyond those added stand at the ends.
struct Axis {
  double from, to;
  double low = HUGE_VAL;
  double high = -HUGE_VAL;
  void Add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  double At(double value) const {
    return from + (std::clamp(value, low, high) - low) / (high - low) * (to - from);
  }
};

double LogMiddle(const std::pair<int64_t, int64_t>& range) {
  return std::log2((static_cast<double>(range.first) + static_cast<double>(range.second)) / 2);
}

// Perplexity by position, a line per configuration, on logarithmic axes. Empty if no value is a
// number.
std::string PerplexitySvg(const PerplexitySummary& perplexity,
                          const std::vector<std::string>& configs) {
  constexpr double kWidth = 880, kLeft = 64, kRight = 640, kTop = 26, kBottom = 310;
  constexpr double kMostNll = 100;  // keeps the exponential of broken values finite
  constexpr int kLines = 5;
  // Where one configuration breaks down, the others shall not look alike: the axis ends at four
  // times the best perplexity, and what is beyond is drawn there.
  const double most_above = std::log(4);
  Axis x{kLeft, kRight}, y{kBottom, kTop};
  for (const auto& [config, curve] : perplexity.curves) {
    for (const auto& [range, nll] : curve) {
      if (std::isnan(nll)) continue;
      x.Add(LogMiddle(range));
      y.Add(std::clamp(nll, 0.0, kMostNll));
    }
  }
  if (x.low > x.high) return "";
  x.high = std::max(x.high, x.low + 1);
  y.high = std::clamp(y.high, y.low + 0.01, y.low + most_above);

  const double legend_end = kTop + 16 * static_cast<double>(perplexity.curves.size() + 1);
  std::string svg = absl::StrFormat("<svg viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\">\n", kWidth,
                                    std::max(kBottom + 30, legend_end), kWidth);
  // The powers of 2 in the range, thinned to what fits.
  const int step = 1 + static_cast<int>(x.high - x.low) / 8;
  for (int power = static_cast<int>(x.high); power >= std::max(0.0, x.low); power -= step) {
    absl::StrAppendFormat(&svg, "<path d=\"M%.1f %.1fV%.1f\" class=\"none\"/>", x.At(power), kTop,
                          kBottom);
    svg += Text(x.At(power), kBottom + 18, "mid", FormatLength(int64_t{1} << power));
  }
  for (int line = 0; line < kLines; ++line) {
    const double nll = y.low + (y.high - y.low) * line / (kLines - 1);
    absl::StrAppendFormat(&svg, "<path d=\"M%.1f %.1fH%.1f\" class=\"none\"/>", kLeft, y.At(nll),
                          kRight);
    svg += Text(kLeft - 8, y.At(nll) + 4, "end", FormatPerplexity(nll));
  }
  svg += Text(kLeft, 14, "", "perplexity by position; what is above is drawn at the end");
  double legend = kTop;
  for (const auto& [config, curve] : perplexity.curves) {
    std::string line;
    for (const auto& [range, nll] : curve) {
      if (std::isnan(nll)) continue;
      absl::StrAppendFormat(&line, "%s%.1f %.1f", line.empty() ? "M" : "L", x.At(LogMiddle(range)),
                            y.At(nll));
    }
    const char* color = kLineColors[config % kLineColors.size()];
    absl::StrAppend(&svg, "<path fill=\"none\" stroke=\"", color,
                    "\" stroke-width=\"2\" stroke-linecap=\"round\" d=\"", line,
                    line.empty() ? "" : "h0", "\"/><g fill=\"", color, "\">",
                    Text(kRight + 12, legend += 16, "name", Shorten(configs[config], 32)),
                    "</g>\n");
  }
  return svg + "</svg>\n";
}

std::string SectionHtml(const Section& section, const std::vector<std::string>& configs) {
  std::string html = absl::StrCat("<h2>", EscapeXml(section.heading), "</h2>\n");
  for (size_t i = 0; i < section.tables.size(); ++i) {
    html += TableHtml(section.tables[i], /*open=*/i == 0);
    if (i == 0 && section.task != nullptr) {
      absl::StrAppend(&html, HeatmapsHtml(*section.task, "Score", &AnswerShares::score),
                      HeatmapsHtml(*section.task, "Evidence found", &AnswerShares::recall));
    }
  }
  if (section.perplexity != nullptr) html += PerplexitySvg(*section.perplexity, configs);
  if (section.task == nullptr || section.task->worst.empty()) return html;
  return html + TableHtml(WorstAnswersTable(*section.task), /*open=*/false);
}

}  // namespace

std::string HtmlReport(const Records& records, const std::string& title) {
  const Summary summary = Summarize(records);
  const std::vector<Section> sections = Sections(summary);
  std::string html = absl::StrCat(kHead, "<title>", EscapeXml(title), "</title>\n", kStyle,
                                  "</head>\n<body>\n", "<h1>", EscapeXml(title), "</h1>\n");
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
    absl::StrAppend(&html, "<section id=\"section-", i + 1, "\">\n",
                    SectionHtml(sections[i], summary.configs), "</section>\n");
  }
  return html + "</body>\n</html>\n";
}

}  // namespace infllm::services
