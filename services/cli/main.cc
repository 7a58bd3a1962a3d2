// infllm: the command line. All parts in one process; see `infllm --help`.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "services/cli/commands.h"
#include "services/cli/interrupt.h"
#include "services/common/malloc_tuning.h"

int main(int argc, char** argv) {
  using namespace infllm::services;
  TuneMallocForMessages();

  CLI::App app{"InfLLM: read texts far longer than the model's window, on bounded memory.",
               "infllm"};
  app.require_subcommand(1);
  app.set_version_flag("--version", "infllm " INFLLM_VERSION);
  app.get_formatter()->column_width(34);
  const std::vector<std::pair<CLI::App*, Command>> commands = [&] {
    std::vector<std::pair<CLI::App*, Command>> made;
    const auto add = [&](const char* name, const char* help, Command (*make)(CLI::App&)) {
      CLI::App* command = app.add_subcommand(name, help);
      made.emplace_back(command, make(*command));
    };
    add("ask", "read a text once and answer questions about it", &AddAskCommand);
    add("eval", "measure what is recalled from long texts, policy by policy", &AddEvalCommand);
    add("generate", "continue a prompt", &AddGenerateCommand);
    add("score", "likelihood of a text, token by token, in one pass", &AddScoreCommand);
    return made;
  }();

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  for (const auto& [command, run] : commands) {
    if (!command->parsed()) continue;
    const absl::Status status = run();
    if (status.ok()) return 0;
    std::fprintf(stderr, "infllm: %s\n", std::string(status.message()).c_str());
    if (absl::IsCancelled(status)) return kInterruptedExit;
    return 1;
  }
  return 2;
}
