#include "services/runtime/flags.h"

#include <CLI/CLI.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "services/runtime/presets.h"

namespace infllm::services {
namespace {

constexpr char kMethod[] = "Method";
constexpr char kSeveral[] = "Configurations";  // where a command takes several values of a flag

// Gives the flags of the method that the command line does not name their value in the preset,
// through the same checks.
void ApplyPreset(CLI::App& command, const RuntimeFlags& flags) {
  const absl::StatusOr<MethodSettings> settings = FindPreset(flags.preset, flags.model);
  if (!settings.ok()) {
    throw CLI::ValidationError("--preset", std::string(settings.status().message()));
  }
  for (const auto& [flag, value] : *settings) {
    CLI::Option* const option = command.get_option_no_throw("--" + flag);
    if (option == nullptr && (flag == "policy" || flag == "rope-scaling")) continue;  // not here
    if (option == nullptr || (option->get_group() != kMethod && option->get_group() != kSeveral)) {
      throw CLI::ValidationError("--preset", absl::StrCat(flags.preset, " sets ", flag,
                                                          ", which is no flag of the method"));
    }
    if (option->count() > 0) continue;
    option->add_result(value);
    option->run_callback();
  }
}

}  // namespace

void AddRuntimeFlags(CLI::App& command, RuntimeFlags& flags) {
  using worker::Name;
  worker::AttentionOptions& a = flags.attention;
  flags.policy = Name(a.policy);
  flags.rope_scaling = Name(a.rope_scaling);
  flags.cache_policy = Name(a.cache_policy);
  flags.scoring = Name(a.scoring);
  flags.representatives = Name(a.representative);

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
  command
      .add_option("--kv-bytes", flags.kv_bytes,
                  "memory for keys and values of windows, e.g. 8GiB; auto is half of what is free")
      ->capture_default_str();
  command
      .add_option("--step-tokens", flags.step_tokens,
                  "tokens of one step, over all sequences: more read faster, fewer answer sooner")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  command
      .add_option("--ram-bytes", flags.ram_bytes,
                  "RAM for far blocks, e.g. 512MiB; the rest goes to --cold-dir (in process only)")
      ->capture_default_str()
      ->group("Memory store");
  command
      .add_option(
          "--cold-dir", flags.cold_dir,
          "directory for blocks that RAM has no room for: its subdirectory infllm-cold is EMPTIED "
          "at the start and removed at the end; default: a fresh directory below $TMPDIR "
          "or /var/tmp (in process only)")
      ->group("Memory store");

  const char* method = kMethod;
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
  choice("--policy", flags.policy, "which tokens a query attends",
         {"full", "streaming-llm", "lm-infinite", "infllm"})
      ->group(method);
  choice("--rope-scaling", flags.rope_scaling,
         "linear: positions / factor (PI); ntk: base * factor^(D/(D-2))", {"none", "linear", "ntk"})
      ->group(method);
  const auto number = [&](const char* name, auto& value, const char* help) {
    command.add_option(name, value, help)->capture_default_str()->group(method);
  };
  number("--rope-factor", a.rope_factor, "factor of --rope-scaling");
  number("--n-init", a.n_init, "tokens kept from the start of the text (sinks)");
  number("--n-local", a.n_local, "tokens of the sliding window");
  number("--block-tokens", a.block_tokens, "tokens per memory block");
  number("--top-k", a.top_k, "blocks retrieved per exec block and layer");
  number("--repr-top-k", a.repr_top_k,
         "tokens of a block whose keys make its --representatives mean-key");
  number("--exec-block", a.exec_block, "prefill tokens that share one retrieval");
  number("--cache-blocks", a.cache_blocks, "retrieved blocks kept per layer on the device");
  choice("--cache-policy", flags.cache_policy, "which cached block goes first", {"lru", "lru-s"})
      ->group(method);
  number("--score-decay", a.score_decay, "decay per exec block of --cache-policy lru-s");
  choice("--scoring", flags.scoring,
         "relevance of a block: the paper's mean, or a vote of the heads", {"mean", "head-vote"})
      ->group(method);
  choice("--representatives", flags.representatives,
         "what stands for a block: the mean of its --repr-top-k keys that drew most attention (the "
         "paper's), or the bounds of all its keys (Quest)",
         {"mean-key", "bounds"})
      ->group(method);
  choice("--compat", flags.compat,
         "reference: double counting as in the published code, for parity runs; needs "
         "--representatives mean-key",
         {"none", "reference"})
      ->group(method);
  command.add_flag("--json", flags.json, "print one JSON object on stdout instead of text");
}

worker::AttentionOptions ResolveAttention(const RuntimeFlags& flags) {
  worker::AttentionOptions options = flags.attention;
  options.policy = *worker::ParsePolicyKind(flags.policy);
  options.rope_scaling = *worker::ParseRopeScaling(flags.rope_scaling);
  options.cache_policy = *worker::ParseCachePolicy(flags.cache_policy);
  options.scoring = *worker::ParseScoring(flags.scoring);
  options.representative = *worker::ParseRepresentativeKind(flags.representatives);
  options.compat_reference = flags.compat == "reference";
  return options;
}

}  // namespace infllm::services
