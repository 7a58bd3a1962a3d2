// One function per subcommand: declares its flags on `app` and returns what runs it. The runner
// prints its own output; the exit status of an error is main's.
#pragma once

#include <functional>

#include "absl/status/status.h"

namespace CLI {
class App;
}

namespace infllm::services {

using Command = std::function<absl::Status()>;

Command AddGenerateCommand(CLI::App& app);
Command AddAskCommand(CLI::App& app);
Command AddContextsCommand(CLI::App& app);
Command AddIngestCommand(CLI::App& app);
Command AddScoreCommand(CLI::App& app);
Command AddEvalCommand(CLI::App& app);

}  // namespace infllm::services
