#include "tests/bench/method_flags.h"

#include <CLI/CLI.hpp>
#include <string>

#include "worker/attention/option_table.h"

namespace infllm::bench {

void AddMethodFlags(CLI::App& app, worker::AttentionOptions& options) {
  for (const worker::AttentionOption& option : worker::OptionTable()) {
    app.add_option_function<std::string>(
           "--" + std::string(option.name),
           [&option, &options](const std::string& text) {
             const absl::Status status = worker::SetOption(option, text, options);
             if (!status.ok()) throw CLI::ValidationError(std::string(status.message()));
           },
           std::string(option.help))
        ->default_str(worker::ValueText(option, options))
        ->group("Method");
  }
}

}  // namespace infllm::bench
