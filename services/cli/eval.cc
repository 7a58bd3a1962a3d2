#define XXH_INLINE_ALL
#include <xxhash.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/core/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/interrupt.h"
#include "services/cli/output.h"
#include "services/eval/report/report.h"
#include "services/eval/run/configurations.h"
#include "services/eval/run/endpoint_subject.h"
#include "services/eval/run/local_subject.h"
#include "services/eval/run/runner.h"
#include "services/runtime/runtime.h"

namespace infllm::services {
namespace {

struct EvalFlags {
  RuntimeFlags runtime;
  ConfigurationChoice configurations;
  std::vector<std::string> tasks, lengths = {"8K"};
  std::string depths = "0:100:10";
  int64_t samples = 1, needles = 0;
  uint64_t seed = 1;
  std::string haystack, data, text, bins = "32";
  std::string out = "infllm-eval";
  std::string endpoint, endpoint_model;
  int64_t endpoint_timeout = 3600;
  int64_t max_full_tokens = 65536;
  Floors floors;
  bool list_tasks = false;
};

std::string HashOf(std::string_view bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return absl::StrFormat("%016x%016x", hash.high64, hash.low64);
}

std::string ListTasks() {
  std::string list;
  for (const Task* task : Tasks()) {
    absl::StrAppendFormat(&list, "%-24s %s%s\n", std::string(task->name()),
                          std::string(task->summary()), task->needs_file() ? " [--data]" : "");
  }
  absl::StrAppendFormat(&list, "%-24s %s\n", std::string(kPerplexityTask),
                        "likelihood of a text by position [--text]");
  return list;
}

// Fills the parts of the plan that do not depend on who is evaluated.
absl::Status PlanTasks(const EvalFlags& flags, EvalPlan& plan) {
  plan.directory = flags.out;
  for (const std::string& name : flags.tasks) {
    if (name == kPerplexityTask) {
      if (flags.text.empty()) {
        return absl::InvalidArgumentError("perplexity needs a text: give --text FILE");
      }
      plan.perplexity.emplace();
      continue;
    }
    INFLLM_ASSIGN_OR_RETURN(const Task* const task, FindTask(name));
    if (task->needs_file() && flags.data.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " reads its samples from a file: give --data FILE"));
    }
    if (std::find(plan.tasks.begin(), plan.tasks.end(), task) == plan.tasks.end()) {
      plan.tasks.push_back(task);
    }
  }
  for (const std::string& text : flags.lengths) {
    INFLLM_ASSIGN_OR_RETURN(plan.lengths.emplace_back(), ParseLength(text));
  }
  std::sort(plan.lengths.begin(), plan.lengths.end());
  plan.lengths.erase(std::unique(plan.lengths.begin(), plan.lengths.end()), plan.lengths.end());

  TaskRequest& request = plan.request;
  INFLLM_ASSIGN_OR_RETURN(request.depths, ParseDepths(flags.depths));
  request.samples = flags.samples;
  request.needles = flags.needles;
  request.seed = flags.seed;
  request.data_file = flags.data;
  plan.settings = {{"seed", absl::StrCat(flags.seed)},
                   {"samples", absl::StrCat(flags.samples)},
                   {"needles", absl::StrCat(flags.needles)},
                   {"depths", absl::StrJoin(request.depths, " ")},
                   {"haystack", ""},
                   {"data", ""}};
  if (!flags.haystack.empty()) {
    INFLLM_ASSIGN_OR_RETURN(std::string haystack, ReadText(flags.haystack));
    plan.settings["haystack"] = HashOf(haystack);
    request.haystack = std::make_shared<const std::string>(std::move(haystack));
  }
  if (!flags.data.empty()) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(flags.data, error)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--data ", flags.data, " is not a regular file: it is read more than once"));
    }
    INFLLM_ASSIGN_OR_RETURN(const std::string data, ReadText(flags.data));
    plan.settings["data"] = HashOf(data);
  }
  if (plan.perplexity) {
    INFLLM_ASSIGN_OR_RETURN(std::string text, ReadText(flags.text));
    plan.settings["text"] = HashOf(text);
    plan.settings["bins"] = flags.bins;
    plan.perplexity->name = std::filesystem::path(flags.text).filename().string();
    plan.perplexity->text = std::make_shared<const std::string>(std::move(text));
    int64_t& bins = plan.perplexity->bins;
    bins = 0;
    if (flags.bins != "log") {
      const char* const end = flags.bins.data() + flags.bins.size();
      const auto [last, error] = std::from_chars(flags.bins.data(), end, bins);
      if (error != std::errc() || last != end || bins < 1 || bins > 10000) {
        return absl::InvalidArgumentError(
            absl::StrCat("--bins is \"", flags.bins, "\", must be a number up to 10000, or log"));
      }
    }
  }
  return absl::OkStatus();
}

// Who is evaluated here: one model under several configurations. `model` outlives the plan.
absl::Status PlanLocal(const EvalFlags& flags, const std::atomic<bool>* cancel, EvalPlan& plan,
                       std::unique_ptr<worker::ModelRuntime>& model) {
  ConfigurationChoice choice = flags.configurations;
  if (choice.scorings.empty())
    choice.scorings.emplace_back(worker::Name(flags.runtime.attention.scoring));
  INFLLM_ASSIGN_OR_RETURN(std::vector<AttentionConfiguration> configurations,
                          MakeConfigurations(flags.runtime, choice));
  std::vector<RuntimeFlags> attentions;
  attentions.reserve(configurations.size());
  for (const AttentionConfiguration& configuration : configurations) {
    attentions.push_back(configuration.flags);
  }
  INFLLM_ASSIGN_OR_RETURN(model, LoadModel(flags.runtime, attentions));
  INFLLM_RETURN_IF_ERROR(RequireTokenizer(*model->model, flags.runtime.model));
  worker::ModelRuntime& loaded = *model;
  plan.request.count_tokens = [&loaded](std::string_view text) {
    return static_cast<int64_t>(loaded.model->EncodePrompt(text).size());
  };
  plan.settings["model"] =
      absl::StrFormat("%016x%016x", loaded.model->fingerprint.hi, loaded.model->fingerprint.lo);
  plan.settings["dtype"] = std::string(kernels::Name(loaded.dtype));
  plan.title = std::filesystem::weakly_canonical(flags.runtime.model).filename().string();
  const int64_t max_full_tokens = flags.max_full_tokens;
  for (AttentionConfiguration& configuration : configurations) {
    plan.configurations.push_back(
        {.name = configuration.name,
         .settings = configuration.settings,
         .open = [&loaded, configuration, max_full_tokens,
                  cancel](int64_t length) -> absl::StatusOr<std::unique_ptr<Subject>> {
           INFLLM_ASSIGN_OR_RETURN(
               const RuntimeFlags at_length,
               FlagsAtLength(configuration, length, loaded.model->config.max_position_embeddings));
           INFLLM_ASSIGN_OR_RETURN(EngineRuntime runtime, NewEngine(loaded, at_length, cancel));
           return NewLocalSubject(loaded, std::move(runtime), max_full_tokens);
         }});
  }
  return absl::OkStatus();
}

absl::Status PlanEndpoint(const EvalFlags& flags, EvalPlan& plan) {
  EndpointOptions options{.url = flags.endpoint,
                          .model = flags.endpoint_model,
                          .timeout = std::chrono::seconds(flags.endpoint_timeout)};
  if (const char* key = std::getenv("OPENAI_API_KEY")) options.api_key = key;
  plan.settings["tokenizer"] = "";  // texts are as long as it makes them
  if (!flags.runtime.model.empty()) {
    const std::string path = flags.runtime.model + "/tokenizer.model";
    INFLLM_ASSIGN_OR_RETURN(std::shared_ptr<const worker::Tokenizer> tokenizer,
                            worker::LoadSentencePiece(path));
    INFLLM_ASSIGN_OR_RETURN(const std::string bytes, ReadText(path));
    plan.settings["tokenizer"] = HashOf(bytes);
    // Shared by the subject and the tasks.
    options.count_tokens = [tokenizer](std::string_view text) {
      return static_cast<int64_t>(tokenizer->Encode(text).size());
    };
  }
  INFLLM_ASSIGN_OR_RETURN(std::shared_ptr<Subject> counter, NewEndpointSubject(options));
  plan.request.count_tokens = [counter](std::string_view text) {
    return counter->CountTokens(text);
  };
  plan.title = flags.endpoint;
  plan.configurations.push_back(
      {.name = "endpoint",
       .settings = {{"endpoint", flags.endpoint}, {"endpoint-model", flags.endpoint_model}},
       .open = [options](int64_t) { return NewEndpointSubject(options); }});
  return absl::OkStatus();
}

// Floors that nothing is measured against would always hold.
absl::Status CheckFloorsApply(const Floors& floors, const EvalPlan& plan) {
  if (floors.score <= 0 && floors.recall <= 0) return absl::OkStatus();
  const bool any =
      std::any_of(plan.configurations.begin(), plan.configurations.end(),
                  [](const Configuration& configuration) { return HasFloor(configuration.name); });
  if (any && !plan.tasks.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "--require-score and --require-recall are about the answers of policy infllm or of an "
      "endpoint, and none are asked for: add policy infllm and a task other than perplexity");
}

absl::Status RunEvalCommand(const EvalFlags& flags) {
  if (flags.list_tasks || flags.tasks == std::vector<std::string>{"list"}) {
    return StreamOut(ListTasks());
  }
  EvalPlan plan;
  INFLLM_RETURN_IF_ERROR(PlanTasks(flags, plan));
  std::unique_ptr<worker::ModelRuntime> model;
  const Interrupt interrupt;
  INFLLM_RETURN_IF_ERROR(flags.endpoint.empty() ? PlanLocal(flags, interrupt.flag(), plan, model)
                                                : PlanEndpoint(flags, plan));
  INFLLM_RETURN_IF_ERROR(CheckFloorsApply(flags.floors, plan));
  INFLLM_ASSIGN_OR_RETURN(const EvalOutcome outcome, RunEval(plan, interrupt.flag()));
  INFLLM_RETURN_IF_ERROR(
      StreamOut(flags.runtime.json ? JsonReport(outcome.records, plan.title) + "\n"
                                   : absl::StrCat(MarkdownReport(outcome.records, plan.title),
                                                  "\nPictures: ", flags.out, "/report.html\n")));
  return CheckOutcome(outcome, flags.floors);
}

void AddTaskFlags(CLI::App& app, EvalFlags& flags) {
  const char* group = "Tasks";
  app.add_option("tasks", flags.tasks, "what to ask, separated by commas or spaces; see `list`")
      ->delimiter(',');
  app.add_flag("--list-tasks", flags.list_tasks,
               "print the tasks and what they are; so does `list`")
      ->group(group);
  app.add_option("--lengths,--length", flags.lengths,
                 "tokens of text, question and answer together, e.g. 1K,64K,1M; K is 1024")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str()
      ->group(group);
  const auto option = [&](const char* name, auto& value, const char* help) {
    return app.add_option(name, value, help)->group(group);
  };
  option("--depths", flags.depths,
         "where the needles are, in percent of the text: FIRST:LAST:STEP or a list")
      ->capture_default_str();
  option("--samples", flags.samples,
         "texts per length and depth; per length for tasks without depths")
      ->check(CLI::Range(int64_t{1}, int64_t{100000}))
      ->capture_default_str();
  option("--needles", flags.needles, "keys hidden in one text; 0 is the task's own number")
      ->check(CLI::Range(int64_t{0}, int64_t{100000}))
      ->capture_default_str();
  option("--seed", flags.seed, "the same seed gives the same texts")->capture_default_str();
  option("--haystack", flags.haystack,
         "text file to hide needles in, plain or .xz, repeated as needed; default: the task's "
         "noise. Books ship in deploy/demo");
  option("--data", flags.data, "samples of the tasks that are read from a file");
  option("--text", flags.text, "text of the task perplexity, plain or .xz; - is stdin");
  option("--bins", flags.bins,
         "perplexity is told for so many equal stretches of the text; log: for stretches that "
         "double")
      ->capture_default_str();
}

void AddConfigurationFlags(CLI::App& app, EvalFlags& flags) {
  const char* group = "Configurations";
  std::vector<CLI::Option*> local;
  for (const char* name : {"--policy", "--rope-scaling", "--scoring"}) {
    app.remove_option(app.get_option(name));  // several at a time here
  }
  ConfigurationChoice& choice = flags.configurations;
  choice.policies = {"infllm"};
  local.push_back(
      app.add_option("--policies", choice.policies,
                     "of " + absl::StrJoin(PolicyNames(), ", ") +
                         "; pi and ntk are full attention with scaled RoPE, by length / trained "
                         "length unless --rope-factor is given")
          ->capture_default_str());
  local.push_back(
      app.add_option("--scoring", choice.scorings,
                     absl::StrCat("of policy infllm: mean (the paper's), head-vote; default: ",
                                  std::string(worker::Name(flags.runtime.attention.scoring)))));
  for (CLI::Option* option : local) {
    option->delimiter(',')->allow_extra_args(false)->group(group);
  }
  local.push_back(app.add_option("--vary", choice.vary,
                                 "FLAG=V1,V2,...: run each value of a flag of the method, e.g. "
                                 "top-k=8,16; repeat it for all combinations")
                      ->allow_extra_args(false)
                      ->group(group));
  app.add_option("--max-full-tokens", flags.max_full_tokens,
                 "longest text, in tokens, that full, pi and ntk are run on: their time grows with "
                 "its square")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
      ->capture_default_str()
      ->group(group);
  CLI::Option* const endpoint =
      app.add_option("--endpoint", flags.endpoint,
                     "evaluate a server instead: http://host:port with the completions API of "
                     "OpenAI, key in $OPENAI_API_KEY; --model is then only for its tokenizer")
          ->group("Server");
  for (CLI::Option* option : local) endpoint->excludes(option);
  app.add_option("--endpoint-model", flags.endpoint_model,
                 "model to ask for; default: the first that the server names")
      ->needs(endpoint)
      ->group("Server");
  app.add_option("--endpoint-timeout", flags.endpoint_timeout, "seconds for one answer")
      ->check(CLI::Range(int64_t{1}, int64_t{1000000}))
      ->capture_default_str()
      ->needs(endpoint)
      ->group("Server");
}

}  // namespace

Command AddEvalCommand(CLI::App& app) {
  auto flags = std::make_shared<EvalFlags>();
  AddRuntimeFlags(app, flags->runtime);
  AddTaskFlags(app, *flags);
  AddConfigurationFlags(app, *flags);
  app.add_option("--out", flags->out,
                 "directory of records and reports; what it holds already is not run again")
      ->capture_default_str();
  const auto floor = [&](const char* name, double& value, const char* help) {
    app.add_option(name, value, help)
        ->check(CLI::Range(0.0, 1.0))
        ->check([](const std::string& text) {  // Range lets nan pass
          double number = 0;
          const bool is_number = absl::SimpleAtod(text, &number) && !std::isnan(number);
          return std::string(is_number ? "" : "is not a number");
        });
  };
  floor("--require-score", flags->floors.score,
        "fail if the mean score of an infllm configuration is below this, from 0 to 1, or if an "
        "answer is missing");
  floor("--require-recall", flags->floors.recall,
        "fail if an infllm configuration retrieves the evidence less often, from 0 to 1, or if an "
        "answer is missing");
  CLI::Option* const model = app.get_option("--model")->required(false);
  app.callback([flags, model, &app] {
    flags->configurations.rope_factor_given = app.get_option("--rope-factor")->count() > 0;
    if (flags->list_tasks || flags->tasks == std::vector<std::string>{"list"}) return;
    if (flags->tasks.empty()) throw CLI::RequiredError("tasks");
    if (model->count() == 0 && flags->endpoint.empty()) {
      throw CLI::RequiredError("--model or --endpoint");
    }
  });
  app.footer(
      "A run that was stopped goes on when the command is repeated. --out then holds "
      "records.jsonl, "
      "report.md, report.html and results.json.");
  return [flags] { return RunEvalCommand(*flags); };
}

}  // namespace infllm::services
