#include "services/eval/report/svg.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/eval/report/text.h"

namespace infllm::services {
namespace {

constexpr double kDigitWidth = 7;     // of the 12 px font, about
constexpr double kLeastScale = 0.72;  // to which a picture shrinks on a small screen

double TextWidth(const std::string& text) {
  const auto is_start = [](char c) { return (c & 0xC0) != 0x80; };
  return kDigitWidth * static_cast<double>(std::count_if(text.begin(), text.end(), is_start));
}

struct Rgb {
  double red, green, blue;
};

// Cividis (J. R. Nuñez, C. R. Anderton, R. S. Renslow, PLoS ONE 13(7), 2018; matplotlib's table,
// CC0) at even steps: as even and ordered to colour-blind readers as to others.
Rgb ScaleColor(double share) {
  static constexpr std::array<uint32_t, 17> kColors = {
      0x00224e, 0x002e6a, 0x1a386f, 0x32436d, 0x434e6c, 0x535a6d, 0x61656f, 0x6f7073, 0x7d7c78,
      0x8c8878, 0x9b9476, 0xaba072, 0xbcae6c, 0xcdbb63, 0xdec958, 0xf0d846, 0xfee838};
  const double at = std::clamp(share, 0.0, 1.0) * static_cast<double>(kColors.size() - 1);
  const size_t low = std::min(static_cast<size_t>(at), kColors.size() - 2);
  const double part = at - static_cast<double>(low);
  const auto channel = [&](int shift) {
    const double a = (kColors[low] >> shift) & 0xFF, b = (kColors[low + 1] >> shift) & 0xFF;
    return a + part * (b - a);
  };
  return {channel(16), channel(8), channel(0)};
}

std::string Hex(const Rgb& color) {
  return absl::StrFormat("#%02x%02x%02x", std::lround(color.red), std::lround(color.green),
                         std::lround(color.blue));
}

// The brightness above which dark text reads better.
bool IsBright(const Rgb& color) {
  return 0.299 * color.red + 0.587 * color.green + 0.114 * color.blue > 118;
}

std::string OpenSvg(const char* css_class, double width, double height,
                    const std::string& description) {
  return absl::StrFormat(
      "<svg class=\"%s\" style=\"min-width:%.0fpx\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" "
      "height=\"%.0f\" role=\"img\" "
      "aria-label=\"%s\">\n",
      css_class, kLeastScale * width, width, height, width, height, EscapeXml(description));
}

std::string Text(double x, double y, const char* css_class, const std::string& text) {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">%s</text>", x, y, css_class,
                         EscapeXml(text));
}

std::string CellSvg(const HeatmapCell& cell, double x, double y, double width, double height) {
  const bool empty = cell.share.n == 0;
  const Rgb color = ScaleColor(cell.share.mean);
  std::string svg = absl::StrFormat(
      "<g><title>%s</title><rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"2\" "
      "%s/>",
      EscapeXml(cell.tooltip), x, y, width, height,
      !empty         ? absl::StrCat("fill=\"", Hex(color), "\"")
      : cell.skipped ? "class=\"skipped\" fill=\"url(#hatch)\""
                     : "class=\"none\"");
  if (!empty) {
    svg += Text(x + width / 2, y + height / 2 + 4, IsBright(color) ? "num dark" : "num light",
                absl::StrFormat("%.0f", 100 * cell.share.mean));
  }
  return svg + "</g>\n";
}

// Maps [low, high] to the pixels [from, to].
struct Axis {
  double low, high, from, to;
  double At(double value) const { return from + (value - low) / (high - low) * (to - from); }
};

double Middle(const PerplexityRecord& point) {
  return (static_cast<double>(point.begin) + static_cast<double>(point.end)) / 2;
}

struct Range {
  double low = HUGE_VAL;
  double high = -HUGE_VAL;
  void Add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

std::string PositionTicks(const Axis& x, double top, double bottom) {
  // The powers of 2 in the range, thinned to what fits.
  const int first = std::max(0, static_cast<int>(std::ceil(x.low)));
  const int last = static_cast<int>(std::floor(x.high));
  const int step = 1 + (last - first) / 8;
  std::string svg;
  for (int power = last; power >= first; power -= step) {
    const double at = x.At(power);
    absl::StrAppendFormat(&svg, "<path d=\"M%.1f %.1fV%.1f\" class=\"grid\"/>", at, top, bottom);
    svg += Text(at, bottom + 18, "tick mid", FormatLength(int64_t{1} << power)) + "\n";
  }
  return svg;
}

// Perplexities from which to which the axis goes, and where its lines are. Values above are drawn
// at its end: where one configuration breaks down, the others shall not look alike.
struct PerplexityScale {
  static constexpr double kMostRatio = 4;  // of the ends
  bool logarithmic = false;
  double low = 0, high = 0;   // perplexities, or their natural logarithms
  std::vector<double> ticks;  // perplexities

  explicit PerplexityScale(const Range& nll) {
    constexpr double kMostNll = 100;  // keeps the exponential of broken values finite
    const double least = std::exp(std::clamp(nll.low, 0.0, kMostNll));
    const double most = std::min(std::exp(std::clamp(nll.high, 0.0, kMostNll)), kMostRatio * least);
    logarithmic = most > 3 * least;
    if (logarithmic) {
      const double first = std::pow(10, std::floor(std::log10(least)));
      for (const double decade : {first, 10 * first}) {
        for (const double factor : {1, 2, 3, 5, 7}) ticks.push_back(decade * factor);
      }
      ticks.push_back(100 * first);
    } else {
      // A step of 1, 2 or 5 times a power of ten that gives about five lines.
      const double rough = std::max(most - least, 0.1 * most) / 4;
      const double power = std::pow(10, std::floor(std::log10(rough)));
      const double step = rough > 5 * power   ? 10 * power
                          : rough > 2 * power ? 5 * power
                          : rough > power     ? 2 * power
                                              : power;
      for (double i = std::floor(least / step); (i - 1) * step < most; ++i) {
        ticks.push_back(i * step);
      }
    }
    // Up to the lines around the values, no further.
    const auto past = std::find_if(ticks.begin(), ticks.end(), [&](double t) { return t >= most; });
    if (past != ticks.end()) ticks.erase(past + 1, ticks.end());
    const auto above =
        std::find_if(ticks.begin(), ticks.end(), [&](double t) { return t > least; });
    if (above != ticks.begin()) ticks.erase(ticks.begin(), above - 1);
    low = Scaled(ticks.front());
    high = Scaled(ticks.back());
    if (low == high) high = low + 1;
  }

  double Scaled(double perplexity) const { return logarithmic ? std::log(perplexity) : perplexity; }
  bool Beyond(double mean_nll) const { return mean_nll > std::log(ticks.back()); }
  // On the axis; its ends stand for what is beyond.
  double Place(double mean_nll) const {
    const double least = std::max(ticks.front(), 1e-9);  // a linear axis may start at 0
    return Scaled(std::exp(std::clamp(mean_nll, std::log(least), std::log(ticks.back()))));
  }
};

std::string PerplexityTicks(const PerplexityScale& scale, const Axis& y, double left,
                            double right) {
  std::string svg;
  for (const double tick : scale.ticks) {
    const double at = y.At(scale.Scaled(tick));
    absl::StrAppendFormat(&svg, "<path d=\"M%.1f %.1fH%.1f\" class=\"grid\"/>", left, at, right);
    svg += Text(left - 8, at + 4, "tick end",
                tick < 1000 ? absl::StrFormat("%.4g", tick) : FormatCount(tick)) +
           "\n";
  }
  return svg;
}

// A name at the right end of a line, moved so that none hides another.
struct LineLabel {
  size_t config;
  double x, y;    // where the line ends
  double at = 0;  // y of the text
};

void Spread(std::vector<LineLabel>& labels, double top, double bottom) {
  constexpr double kLineHeight = 15;
  std::stable_sort(labels.begin(), labels.end(),
                   [](const LineLabel& a, const LineLabel& b) { return a.y < b.y; });
  double least = top;
  for (LineLabel& label : labels) {
    label.at = std::max(label.y, least);
    least = label.at + kLineHeight;
  }
  double most = bottom;
  for (auto label = labels.rbegin(); label != labels.rend(); ++label) {
    label->at = std::min(label->at, most);
    most = label->at - kLineHeight;
  }
}

std::string SeriesClass(size_t config) {
  return absl::StrCat("s", config % kSeriesColors,
                      config / kSeriesColors % 2 == 1 ? " dashed" : "");
}

// Adds the label of the line if there is a line.
std::string CurveSvg(const PerplexityCurve& curve, const std::string& name,
                     const PerplexityScale& scale, const Axis& x, const Axis& y,
                     std::vector<LineLabel>& labels) {
  std::string line, dots;
  std::optional<LineLabel> end;
  bool joined = false;      // no line across what is no number,
  bool was_beyond = false;  // nor along the end of the axis
  for (const PerplexityRecord& point : curve.points) {
    if (std::isnan(point.mean_nll)) {
      joined = false;
      continue;
    }
    const bool beyond = scale.Beyond(point.mean_nll);
    end =
        LineLabel{curve.config, x.At(std::log2(Middle(point))), y.At(scale.Place(point.mean_nll))};
    absl::StrAppendFormat(&line, "%s%.1f %.1f", joined && !(beyond && was_beyond) ? "L" : "M",
                          end->x, end->y);
    joined = true;
    was_beyond = beyond;
    const std::string tooltip = absl::StrCat(
        "<title>",
        EscapeXml(absl::StrCat(name, ", positions ", FormatLength(point.begin), "–",
                               FormatLength(point.end), ": ", FormatPerplexity(point.mean_nll))),
        "</title>");
    if (beyond) {
      absl::StrAppendFormat(&dots, "<path class=\"beyond\" d=\"M%.1f %.1fl5 8h-10z\">%s</path>",
                            end->x, end->y - 8, tooltip);
    } else {
      absl::StrAppendFormat(&dots, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\">%s</circle>", end->x,
                            end->y, tooltip);
    }
  }
  if (!end.has_value()) return "";
  labels.push_back(*end);
  return absl::StrCat("<g class=\"series ", SeriesClass(curve.config), "\"><path d=\"", line,
                      "\"/>", dots, "</g>\n");
}

}  // namespace

std::string SvgDefinitions() {
  return "<svg width=\"0\" height=\"0\" class=\"defs\" aria-hidden=\"true\"><defs>"
         "<pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" "
         "patternTransform=\"rotate(45)\"><rect width=\"6\" height=\"6\" class=\"hatch-back\"/>"
         "<rect width=\"2\" height=\"6\" class=\"hatch-line\"/></pattern></defs></svg>\n";
}

std::string HeatmapSvg(const Heatmap& heatmap) {
  constexpr double kHeight = 26, kGap = 2, kHeader = 22;
  double left = 0, width = 40;
  for (const std::string& row : heatmap.rows) left = std::max(left, TextWidth(row) + 14);
  for (const std::string& column : heatmap.columns) width = std::max(width, TextWidth(column) + 6);
  const double columns = static_cast<double>(heatmap.columns.size());
  const double rows = static_cast<double>(heatmap.rows.size());
  std::string svg = OpenSvg("map", left + columns * (width + kGap),
                            rows * (kHeight + kGap) + kHeader, heatmap.description);
  for (size_t row = 0; row < heatmap.rows.size(); ++row) {
    const double y = static_cast<double>(row) * (kHeight + kGap);
    svg += Text(left - 8, y + kHeight / 2 + 4, "tick end", heatmap.rows[row]) + "\n";
    for (size_t column = 0; column < heatmap.columns.size(); ++column) {
      svg += CellSvg(heatmap.cells[row][column],
                     left + static_cast<double>(column) * (width + kGap), y, width, kHeight);
    }
  }
  for (size_t column = 0; column < heatmap.columns.size(); ++column) {
    svg += Text(left + static_cast<double>(column) * (width + kGap) + width / 2,
                rows * (kHeight + kGap) + 14, "tick mid", heatmap.columns[column]);
  }
  return svg + "\n</svg>\n";
}

std::string ColorScaleSvg() {
  constexpr int kSteps = 50;
  constexpr double kLeft = 24, kStep = 4, kHeight = 12;
  std::string svg =
      OpenSvg("scale", kLeft + kSteps * kStep + 46, kHeight, "Colours from 0 to 100%");
  svg += Text(kLeft - 8, kHeight - 2, "tick end", "0");
  for (int i = 0; i < kSteps; ++i) {
    absl::StrAppendFormat(&svg, "<rect x=\"%.0f\" width=\"%.1f\" height=\"%.0f\" fill=\"%s\"/>",
                          kLeft + i * kStep, kStep + 0.5, kHeight,
                          Hex(ScaleColor(i / (kSteps - 1.0))));
  }
  svg += Text(kLeft + kSteps * kStep + 8, kHeight - 2, "tick", "100%");
  return svg + "</svg>\n";
}

std::string PerplexitySvg(const PerplexitySummary& perplexity,
                          const std::vector<std::string>& configs) {
  constexpr double kWidth = 760, kHeight = 340, kLeft = 64, kTop = 26, kBottom = kHeight - 44;
  constexpr size_t kMostLabelCharacters = 24;
  double right = kWidth - 20;
  Range positions, nlls;
  for (const PerplexityCurve& curve : perplexity.curves) {
    right = std::min(right,
                     kWidth - 24 - TextWidth(Shorten(configs[curve.config], kMostLabelCharacters)));
    for (const PerplexityRecord& point : curve.points) {
      if (std::isnan(point.mean_nll)) continue;
      positions.Add(std::log2(Middle(point)));
      nlls.Add(point.mean_nll);
    }
  }
  const std::string description =
      absl::StrCat("Perplexity of ", perplexity.text, " by position, a line per configuration");
  if (positions.low > positions.high) return "";
  if (positions.high - positions.low < 1) positions.high = positions.low + 1;

  const PerplexityScale scale(nlls);
  const Axis x{positions.low, positions.high, kLeft, right};
  const Axis y{scale.low, scale.high, kBottom, kTop};
  std::string svg = OpenSvg("chart", kWidth, kHeight, description);
  svg += PositionTicks(x, kTop, kBottom) + PerplexityTicks(scale, y, kLeft, right);
  svg += Text(kLeft, 14, "axis",
              scale.Beyond(nlls.high) ? "perplexity (▲ beyond the axis)" : "perplexity") +
         Text((kLeft + right) / 2, kHeight - 8, "axis mid", "position in the text, tokens");
  svg += "\n";
  std::vector<LineLabel> labels;
  for (const PerplexityCurve& curve : perplexity.curves) {
    svg += CurveSvg(curve, configs[curve.config], scale, x, y, labels);
  }
  Spread(labels, kTop, kBottom);
  for (const LineLabel& label : labels) {
    const std::string css_class = SeriesClass(label.config);
    absl::StrAppendFormat(&svg, "<g class=\"label %s\"><path d=\"M%.1f %.1fL%.1f %.1f\"/>%s</g>\n",
                          css_class, label.x + 4, label.y, right + 10, label.at,
                          Text(right + 14, label.at + 4, "name",
                               Shorten(configs[label.config], kMostLabelCharacters)));
  }
  return svg + "</svg>\n";
}

std::string LineSampleSvg(size_t config) {
  return absl::StrCat(
      "<svg viewBox=\"0 0 26 10\" width=\"26\" height=\"10\" aria-hidden=\"true\"><g "
      "class=\"series ",
      SeriesClass(config),
      "\"><path d=\"M0 5H26\"/><circle cx=\"13\" cy=\"5\" r=\"3\"/></g></svg>");
}

}  // namespace infllm::services
