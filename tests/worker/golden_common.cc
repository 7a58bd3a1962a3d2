#include "tests/worker/golden_common.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/core/status_macros.h"
#include "memstore/in_process_store.h"
#include "worker/attention/option_table.h"

namespace infllm::worker {
namespace {

using nlohmann::json;

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

// The goldens are ours, so a field that is missing may throw.
absl::StatusOr<json> ReadJson(const std::string& path) {
  INFLLM_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return json::parse(text);
}

absl::StatusOr<LogitsGolden> ReadPagedInferGolden() {
  INFLLM_ASSIGN_OR_RETURN(const std::string meta,
                          ReadFile(DataPath("paged-infer/tiny_llama_meta.txt")));
  INFLLM_ASSIGN_OR_RETURN(const std::string bytes,
                          ReadFile(DataPath("paged-infer/tiny_llama_golden.bin")));
  const std::map<std::string, std::string> fields =
      absl::StrSplit(meta, absl::ByAnyChar("=\n"), absl::SkipEmpty());
  LogitsGolden golden;
  for (const std::string& id : std::vector<std::string>(absl::StrSplit(fields.at("tokens"), ','))) {
    golden.ids.push_back(std::stoi(id));
  }
  std::vector<float> row(std::stoul(fields.at("vocab_size")));
  const size_t row_bytes = row.size() * sizeof(float);
  if (bytes.size() != golden.ids.size() * row_bytes) {
    return absl::DataLossError(absl::StrCat("the golden of paged-infer has ", bytes.size(),
                                            " bytes, must have ", golden.ids.size() * row_bytes));
  }
  for (size_t i = 0; i < golden.ids.size(); ++i) {
    std::memcpy(row.data(), bytes.data() + i * row_bytes, row_bytes);
    golden.positions.push_back(static_cast<int64_t>(i));
    golden.logits.push_back(row);
  }
  return golden;
}

AttentionOptions ReadOptions(const json& options) {
  AttentionOptions result;
  const auto set = [&](const char* option, const char* key) {
    INFLLM_CHECK(SetOption(*FindOption(option), options.at(key).get<std::string>(), result).ok());
  };
  set("policy", "policy");
  set("rope-scaling", "rope_scaling");
  set("scoring", "scoring");
  set("compat", "compat");
  result.rope_factor = options.at("rope_factor");
  result.n_init = options.at("n_init");
  result.n_local = options.at("n_local");
  result.block_tokens = options.at("block_tokens");
  result.top_k = options.at("top_k");
  result.repr_top_k = options.at("repr_top_k");
  result.exec_block = options.at("exec_block");
  result.representative = kernels::RepresentativeKind::kMeanKey;
  result.cache_blocks = result.top_k + 1;  // no result depends on it; small makes it work
  return result;
}

}  // namespace

std::string DataPath(std::string_view relative) {
  return std::string(INFLLM_TEST_DATA "/").append(relative);
}

absl::StatusOr<LogitsGolden> ReadLogitsGolden(std::string_view model) {
  if (model == "paged-infer") return ReadPagedInferGolden();
  INFLLM_ASSIGN_OR_RETURN(const json file, ReadJson(DataPath(model) + "/logits.json"));
  return LogitsGolden{
      .ids = file.at("ids"), .positions = file.at("positions"), .logits = file.at("logits")};
}

absl::StatusOr<std::vector<GreedyGolden>> ReadGreedyGoldens() {
  INFLLM_ASSIGN_OR_RETURN(const std::string text, ReadFile(DataPath("stories260K/greedy.jsonl")));
  std::vector<GreedyGolden> goldens;
  for (const std::string& line :
       std::vector<std::string>(absl::StrSplit(text, '\n', absl::SkipEmpty()))) {
    const json row = json::parse(line);
    goldens.push_back({.prompt = row.at("prompt"),
                       .text = row.at("text"),
                       .ids = row.at("ids"),
                       .prompt_tokens = row.at("n_prompt"),
                       .ended_at_bos = row.at("ended_at_bos")});
  }
  return goldens;
}

absl::StatusOr<std::vector<PolicyGolden>> ReadPolicyGoldens(std::string_view model) {
  INFLLM_ASSIGN_OR_RETURN(
      const json file, ReadJson(absl::StrCat(DataPath("policies/"), std::string(model), ".json")));
  std::vector<PolicyGolden> goldens;
  for (const json& row : file.at("cases")) {
    goldens.push_back({.name = row.at("name"),
                       .options = ReadOptions(row.at("options")),
                       .ids = row.at("ids"),
                       .argmax = row.at("argmax"),
                       .nll = row.at("nll"),
                       .near_ties = row.at("near_ties")});
  }
  return goldens;
}

absl::StatusOr<std::unique_ptr<GoldenModel>> GoldenModel::Open(std::string_view model,
                                                               kernels::Backend& backend,
                                                               kernels::ThreadPool& pool) {
  std::unique_ptr<GoldenModel> result(new GoldenModel(backend, pool));
  INFLLM_ASSIGN_OR_RETURN(result->model_,
                          LoadModel(DataPath(model), backend, kernels::DType::kF32));
  result->store_ = memstore::NewInProcessStore({}, backend, nullptr).value();
  return result;
}

absl::StatusOr<std::unique_ptr<Engine>> GoldenModel::NewEngine(const AttentionOptions& options) {
  return Engine::New(*model_, backend_, pool_, store_.get(),
                     {.attention = options, .kv_bytes = int64_t{256} << 20});
}

absl::Status ReadAll(Engine& engine, std::span<const int32_t> tokens, int64_t chunk,
                     StepItem::Want want, absl::FunctionRef<void(const StepItem&)> visit) {
  INFLLM_ASSIGN_OR_RETURN(const SequenceId sequence, engine.NewSequence());
  const auto step = static_cast<size_t>(std::min(chunk, engine.max_item_tokens()));
  for (size_t begin = 0; begin < tokens.size(); begin += step) {
    const size_t count = std::min(step, tokens.size() - begin);
    std::vector<int32_t> targets(tokens.begin() + begin + 1,
                                 tokens.begin() + std::min(begin + count + 1, tokens.size()));
    targets.resize(count, -1);
    StepItem item{.sequence = sequence,
                  .tokens = tokens.subspan(begin, count),
                  .want = want,
                  .targets = targets};
    INFLLM_RETURN_IF_ERROR(engine.Step({&item, 1}));
    INFLLM_RETURN_IF_ERROR(item.status);
    visit(item);
  }
  engine.Drop(sequence);
  return absl::OkStatus();
}

}  // namespace infllm::worker
