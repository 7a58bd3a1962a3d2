// infllm: the command line. All parts in one process; see `infllm --help`.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <new>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "services/cli/commands.h"
#include "services/cli/interrupt.h"
#include "services/cli/output.h"
#include "services/common/malloc_tuning.h"

namespace infllm::services {
namespace {

// The status of a command, or that of its output if that did not all get through.
absl::Status Run(const Command& command) {
  absl::Status status;
  try {
    status = command();
  } catch (const std::bad_alloc&) {
    status = absl::ResourceExhaustedError("out of memory");
  }
  const absl::Status written = FlushOutput();
  return status.ok() ? written : status;
}

// Reports an error and returns the exit status.
int Report(const absl::Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "infllm: %s\n", std::string(status.message()).c_str());
  if (absl::IsCancelled(status) && InterruptedExit() != 0) return InterruptedExit();
  return 1;
}

}  // namespace
}  // namespace infllm::services

int main(int argc, char** argv) {
  using namespace infllm::services;
  PrepareStandardStreams();
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
    add("ask", "read a text once, or open a context, and answer questions about it",
        &AddAskCommand);
    add("contexts", "what memory stores have committed: list, show, fork, delete",
        &AddContextsCommand);
    add("eval", "measure what is recalled from long texts, policy by policy", &AddEvalCommand);
    add("generate", "continue a prompt", &AddGenerateCommand);
    add("ingest", "read a text into a context that outlives the process", &AddIngestCommand);
    add("score", "likelihood of a text, token by token, in one pass", &AddScoreCommand);
    return made;
  }();

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::ostringstream help;
    return app.exit(error, help, std::cerr) == 0 ? Report(StreamOut(help.str())) : 2;
  }
  for (const auto& [command, run] : commands) {
    if (command->parsed()) return Report(Run(run));
  }
  return 2;
}
