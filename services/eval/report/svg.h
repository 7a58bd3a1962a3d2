// The pictures of a report as SVG for inside of a page. They use the classes and variables of the
// page's style sheet (html.cc), so that one picture suits a light and a dark page.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "services/eval/report/aggregate.h"

namespace infllm::services {

// Line styles that tell configurations apart: classes s0, s1, ... of the style sheet.
inline constexpr size_t kSeriesColors = 7;

struct HeatmapCell {
  Share share;           // n = 0: left empty
  bool skipped = false;  // hatched
  std::string tooltip;
};

// All strings are plain text.
struct Heatmap {
  std::string description;  // for those who cannot see it
  std::vector<std::string> columns;
  std::vector<std::string> rows;
  std::vector<std::vector<HeatmapCell>> cells;  // [rows][columns]
};

// Definitions that the other pictures refer to: once in a page, before them.
std::string SvgDefinitions();
std::string HeatmapSvg(const Heatmap& heatmap);
// The colours of a heatmap from 0 to 100%.
std::string ColorScaleSvg();
// Perplexity by position, on logarithmic axes; the perplexity's is linear if it varies little.
// Empty if no value is a number.
std::string PerplexitySvg(const PerplexitySummary& perplexity,
                          const std::vector<std::string>& configs);
// A short piece of the line of a configuration, for legends.
std::string LineSampleSvg(size_t config);

}  // namespace infllm::services
