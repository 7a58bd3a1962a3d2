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
  return {{"n", share.n},
          {"mean", share.mean},
          {"low", share.interval.low},
          {"high", share.interval.high}};
}

Json ToJson(const TaskSummary& task, size_t config, size_t length) {
  const Cell& cell = task.cells[config][length];
  Json json = {{"config", task.configs[config]},
               {"length", task.lengths[length]},
               {"skipped", cell.skip_reason.empty() ? Json(nullptr) : Json(cell.skip_reason)},
               {"score", ToJson(cell.all.score)},
               {"recall", ToJson(cell.all.recall)},
               {"kept", ToJson(cell.all.kept)},
               {"mean_layers", OrNull(cell.mean_layers)},
               {"median_rank", OrNull(cell.median_rank)},
               {"answer_seconds", cell.all.score.n > 0 ? Json(cell.answer_seconds) : Json(nullptr)},
               {"cache_hit_share", OrNull(cell.cache_hit_share())},
               {"miss_bytes", cell.miss_bytes},
               {"reading", nullptr},
               {"depths", Json::array()}};
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
    const AnswerShares& shares = cell.by_depth[i];
    if (shares.score.n == 0) continue;
    json["depths"].push_back({{"depth", task.depths[i]},
                              {"score", ToJson(shares.score)},
                              {"recall", ToJson(shares.recall)},
                              {"kept", ToJson(shares.kept)}});
  }
  return json;
}

Json CellsToJson(const TaskSummary& task) {
  Json cells = Json::array();
  for (size_t config = 0; config < task.configs.size(); ++config) {
    for (size_t length = 0; length < task.lengths.size(); ++length) {
      cells.push_back(ToJson(task, config, length));
    }
  }
  return cells;
}

Json ToJson(const TaskSummary& task) {
  Json json = {{"task", task.name},
               {"wrong_answers", task.wrong},
               {"effective_lengths", Json::array()},
               {"cells", CellsToJson(task)}};
  for (size_t config = 0; config < task.effective_lengths.size(); ++config) {
    const int64_t effective = task.effective_lengths[config];
    json["effective_lengths"].push_back(
        {{"config", task.configs[config]},
         {"length", effective > 0 ? Json(effective) : Json(nullptr)}});
  }
  return json;
}

Json ToJson(const PerplexitySummary& perplexity, const std::vector<std::string>& configs) {
  Json json = {{"text", perplexity.text}, {"length", perplexity.length}, {"curves", Json::array()}};
  for (const PerplexityCurve& curve : perplexity.curves) {
    Json points = Json::array();
    for (const PerplexityRecord& point : curve.points) {
      // JSON has neither NaN nor infinity.
      const double value = std::exp(point.mean_nll);
      points.push_back(
          {{"begin", point.begin},
           {"end", point.end},
           {"mean_nll", std::isfinite(point.mean_nll) ? Json(point.mean_nll) : Json(nullptr)},
           {"perplexity", std::isfinite(value) ? Json(value) : Json(nullptr)}});
    }
    json["curves"].push_back({{"config", configs[curve.config]}, {"points", std::move(points)}});
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
