#include "services/runtime/flags.h"

#include <CLI/CLI.hpp>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "services/runtime/presets.h"
#include "worker/attention/option_table.h"

namespace infllm::services {
namespace {

// Gives the flags of the method that the command line does not name their value in the preset,
// through the same checks. To CLI11 they stay not given.
void ApplyPreset(const CLI::App& command, RuntimeFlags& flags) {
  const absl::StatusOr<MethodSettings> settings = FindPreset(flags.preset, flags.model);
  if (!settings.ok()) {
    throw CLI::ValidationError("--preset", std::string(settings.status().message()));
  }
  for (const auto& [flag, value] : *settings) {
    const worker::AttentionOption* const option = worker::FindOption(flag);
    if (option == nullptr) {
      throw CLI::ValidationError("--preset", absl::StrCat(flags.preset, " sets ", flag,
                                                          ", which is no flag of the method"));
    }
    const CLI::Option* const given = command.get_option_no_throw("--" + flag);
    if (given == nullptr || given->count() > 0) continue;  // null where the command has its own
    if (const absl::Status status = worker::SetOption(*option, value, flags.attention);
        !status.ok()) {
      throw CLI::ValidationError("--preset", absl::StrCat(flags.preset, " sets --", flag, ": ",
                                                          std::string(status.message())));
    }
  }
}

// As CLI::Range and CLI::IsMember show it.
std::string TypeName(const worker::AttentionOption& option) {
  if (const auto* integer = std::get_if<worker::IntegerOption>(&option.kind)) {
    return absl::StrCat("INT in [", integer->least, " - ", integer->most, "]");
  }
  if (const auto* real = std::get_if<worker::RealOption>(&option.kind)) {
    return absl::StrCat("FLOAT in [", real->least, " - ", real->most, "]");
  }
  std::string names = "TEXT:{";
  for (const std::string_view name : std::get<worker::ChoiceOption>(option.kind).names) {
    absl::StrAppend(&names, names.back() == '{' ? "" : ",", std::string(name));
  }
  return names + "}";
}

// `options` has the default; it must outlive the command.
void AddMethodFlag(CLI::App& command, const worker::AttentionOption& option,
                   worker::AttentionOptions& options) {
  const std::string flag = absl::StrCat("--", std::string(option.name));
  command
      .add_option_function<std::string>(
          flag,
          [flag, &option, &options](const std::string& text) {
            const absl::Status status = worker::SetOption(option, text, options);
            if (!status.ok()) throw CLI::ValidationError(flag, std::string(status.message()));
          },
          std::string(option.help))
      ->type_name(TypeName(option))
      ->default_str(worker::ValueText(option, options))
      ->group("Method");
}

}  // namespace

void AddSecurityFlags(CLI::App& command, ClientSecurity& security) {
  const auto file = [&](const char* name, std::string& path, const char* help) {
    command.add_option(name, path, help)->type_name("FILE")->group("Memory store");
  };
  file("--tls-ca", security.tls_ca,
       "PEM certificates of the CAs that sign the daemon's; makes the connection one of TLS");
  file("--tls-cert", security.tls_cert, "PEM certificate that says to the daemon who calls");
  file("--tls-key", security.tls_key, "PEM key of --tls-cert");
  file("--token-file", security.token_file,
       "token that says to the daemon who calls; default: the environment's INFLLM_TOKEN");
  command
      .add_flag("--insecure", security.insecure, "send the token over TCP without TLS all the same")
      ->group("Memory store");
}

void AddRuntimeFlags(CLI::App& command, RuntimeFlags& flags) {
  const auto choice = [&](const char* name, std::string& value, const char* help,
                          std::vector<std::string> names) {
    return command.add_option(name, value, help)
        ->check(CLI::IsMember(std::move(names)))
        ->capture_default_str();
  };

  command.add_option("--model", flags.model, "Hugging Face model directory")->required();
  choice("--device", flags.device,
         "where to compute; auto is a GPU that can run the model (none yet), else the CPU",
         {"auto", "cpu", "cuda"})
      ->group("Machine");
  choice("--dtype", flags.dtype,
         "of weights, keys and values; auto is bf16 where the CPU multiplies it, else f32",
         {"auto", "f32", "bf16"})
      ->group("Machine");
  command
      .add_option("--threads", flags.threads,
                  "compute threads; 0 is all cores up to 2, else one less")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str()
      ->group("Machine");

  command
      .add_option("--memstore", flags.memstore,
                  "memory store daemon, host:port or unix:path; default: in this process")
      ->group("Memory store");
  AddSecurityFlags(command, flags.security);
  command
      .add_option("--kv-bytes", flags.kv_bytes,
                  "memory for keys and values of windows, e.g. 8GiB; auto is half of what is free")
      ->capture_default_str();
  command
      .add_option("--step-tokens", flags.step_tokens,
                  "tokens of one step, over all sequences: more read faster, fewer answer sooner")
      ->check(CLI::Range(int64_t{1}, int64_t{16384}))
      ->capture_default_str();
  command
      .add_option("--ram-bytes", flags.ram_bytes,
                  "RAM for far blocks, e.g. 512MiB; the rest goes to disk (in process only)")
      ->capture_default_str()
      ->group("Memory store");
  command
      .add_option(
          "--data-dir", flags.data_dir,
          "directory of the memory store: committed contexts, which outlive the process, and "
          "blocks "
          "that RAM has no room for; default: nothing is committed, and blocks go to a fresh "
          "directory below $TMPDIR or /var/tmp (in process only)")
      ->group("Memory store");

  std::string presets =
      "settings of the flags below that are not given; auto: what the model's infllm.json "
      "recommends, if it has one; none: the defaults below";
  std::vector<std::string> preset_names = {"auto", "none"};
  for (const Preset& preset : Presets()) {
    absl::StrAppend(&presets, "; ", std::string(preset.name), ": ", std::string(preset.summary));
    preset_names.emplace_back(preset.name);
  }
  choice("--preset", flags.preset, presets.c_str(), std::move(preset_names))->group("Preset");
  command.parse_complete_callback([&command, &flags] { ApplyPreset(command, flags); });
  for (const worker::AttentionOption& option : worker::OptionTable()) {
    AddMethodFlag(command, option, flags.attention);
  }
  command.add_flag("--json", flags.json, "print one JSON object on stdout instead of text");
}

}  // namespace infllm::services
