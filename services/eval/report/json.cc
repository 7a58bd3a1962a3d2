#include "services/eval/report/report.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "services/eval/report/aggregate.h"

namespace infllm::services {
namespace {

using Json = nlohmann::ordered_json;

template <typename T>
Json OrNull(const std::optional<T>& value) {
  return value.has_value() ? Json(*value) : Json(nullptr);
}

Json ToJson(const Share& share) {
  if (share.n == 0) return nullptr;
  const Interval interval = share.interval();
  return {{"n", share.n}, {"mean", share.mean()}, {"low", interval.low}, {"high", interval.high}};
}

void AddShares(const AnswerShares& shares, Json& json) {
  json["score"] = ToJson(shares.score);
  json["recall"] = ToJson(shares.recall);
  json["kept"] = ToJson(shares.kept);
}

Json CellToJson(const TaskSummary& task, size_t config, size_t length) {
  const Cell& cell = task.cells[config][length];
  Json json = {{"config", task.configs[config]},
               {"length", task.lengths[length]},
               {"skipped", cell.skip_reason.empty() ? Json(nullptr) : Json(cell.skip_reason)}};
  AddShares(cell.all, json);
  json["mean_layers"] = OrNull(cell.mean_layers());
  json["median_rank"] = OrNull(cell.median_rank());
  json["answer_seconds"] = OrNull(cell.answer_seconds());
  json["cache_hit_share"] = OrNull(cell.cache_hit_share());
  json["miss_bytes"] = cell.miss_bytes;
  json["reading"] = nullptr;
  json["depths"] = Json::array();
  if (cell.texts > 0) {
    json["reading"] = {{"texts", cell.texts},
                       {"tokens", cell.tokens_read},
                       {"seconds", cell.read_seconds},
                       {"tokens_per_second", OrNull(cell.read_tokens_per_second())},
                       {"ram_bytes", cell.ram_bytes},
                       {"cold_bytes", cell.cold_bytes},
                       {"peak_rss_bytes", cell.peak_rss_bytes}};
  }
  for (size_t i = 0; i < task.depths.size(); ++i) {
    if (cell.by_depth[i].score.n == 0) continue;
    AddShares(cell.by_depth[i], json["depths"].emplace_back(Json{{"depth", task.depths[i]}}));
  }
  return json;
}

Json CellsToJson(const TaskSummary& task) {
  Json cells = Json::array();
  for (size_t config = 0; config < task.configs.size(); ++config) {
    for (size_t i = 0; i < task.lengths.size(); ++i) cells.push_back(CellToJson(task, config, i));
  }
  return cells;
}

Json ToJson(const TaskSummary& task) {
  Json effective = Json::array();
  for (size_t config = 0; config < task.effective_lengths.size(); ++config) {
    const int64_t length = task.effective_lengths[config];
    effective.push_back(
        {{"config", task.configs[config]}, {"length", length > 0 ? Json(length) : Json(nullptr)}});
  }
  return {{"task", task.name},
          {"wrong_answers", task.wrong},
          {"effective_lengths", effective},
          {"cells", CellsToJson(task)}};
}

// JSON has neither NaN nor infinity.
Json FiniteOrNull(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

Json ToJson(const PerplexitySummary& perplexity, const std::vector<std::string>& configs) {
  Json json = {{"text", perplexity.text}, {"length", perplexity.length}, {"curves", Json::array()}};
  for (const auto& [config, curve] : perplexity.curves) {
    Json points = Json::array();
    for (const auto& [range, nll] : curve) {
      points.push_back({{"begin", range.first},
                        {"end", range.second},
                        {"mean_nll", FiniteOrNull(nll)},
                        {"perplexity", FiniteOrNull(std::exp(nll))}});
    }
    json["curves"].push_back({{"config", configs[config]}, {"points", std::move(points)}});
  }
  return json;
}

}  // namespace

std::string JsonReport(const Records& records, const std::string& title) {
  const Summary summary = Summarize(records);
  Json json = {{"title", title},
               {"configs", summary.configs},
               {"tasks", Json::array()},
               {"perplexities", Json::array()},
               {"perplexity_runs", Json::array()}};
  for (const TaskSummary& task : summary.tasks) json["tasks"].push_back(ToJson(task));
  for (const PerplexitySummary& perplexity : summary.perplexities) {
    json["perplexities"].push_back(ToJson(perplexity, summary.configs));
  }
  if (summary.perplexity_runs.has_value()) {
    json["perplexity_runs"] = CellsToJson(*summary.perplexity_runs);
  }
  return json.dump(2, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) + "\n";
}

}  // namespace infllm::services
