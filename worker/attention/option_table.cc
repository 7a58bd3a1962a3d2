#include "worker/attention/option_table.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "memstore/limits.h"

namespace infllm::worker {
namespace {

using kernels::RepresentativeKind;
using kernels::Scoring;
using Options = AttentionOptions;

// Far above any use; keeps every product of two options within int64.
constexpr int64_t kMaxTokens = int64_t{1} << 24;

// Names of the values of an enum, in their order.
constexpr std::array<std::string_view, 4> kPolicies = {"full", "streaming-llm", "lm-infinite",
                                                       "infllm"};
constexpr std::array<std::string_view, 3> kScalings = {"none", "linear", "ntk"};
constexpr std::array<std::string_view, 2> kCaches = {"lru", "lru-s"};
constexpr std::array<std::string_view, 2> kScorings = {"mean", "head-vote"};
constexpr std::array<std::string_view, 2> kRepresentatives = {"mean-key", "bounds"};
constexpr std::array<std::string_view, 2> kCompats = {"none", "reference"};  // false, true

template <size_t N, typename Enum>
std::string_view NameOf(const std::array<std::string_view, N>& names, Enum value) {
  const auto index = static_cast<size_t>(value);
  return index < N ? names[index] : "unknown";
}

template <auto kMember>
ChoiceOption Choice(std::span<const std::string_view> names) {
  using Value = std::remove_cvref_t<decltype(std::declval<Options>().*kMember)>;
  return {.names = names,
          .get = [](const Options& o) { return static_cast<size_t>(o.*kMember); },
          .set = [](Options& o, size_t index) { o.*kMember = static_cast<Value>(index); }};
}

bool Always(const Options&) { return true; }
bool Scales(const Options& o) { return o.rope_scaling != RopeScaling::kNone; }
bool HasWindow(const Options& o) { return o.policy != PolicyKind::kFull; }
bool HasMemory(const Options& o) { return o.policy == PolicyKind::kInfLlm; }
bool Retrieves(const Options& o) { return HasMemory(o) && o.top_k > 0; }
bool HasMeanKeys(const Options& o) {
  return Retrieves(o) && o.representative == RepresentativeKind::kMeanKey;
}
bool CachesByMass(const Options& o) { return Retrieves(o) && o.cache_policy == CachePolicy::kLruS; }
bool CanCountTwice(const Options& o) { return HasMemory(o) && o.exec_block > 1; }

absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

// The shortest text that is read back as the same number; 0 for -0.
std::string Text(double value) {
  char text[32];
  const std::to_chars_result end = std::to_chars(text, text + sizeof(text), value + 0.0);
  return std::string(text, end.ptr);
}
std::string Text(int64_t value) { return absl::StrCat(value); }

// What a value of the kind must be.
std::string Limits(const IntegerOption& option) {
  return absl::StrCat("a whole number in [", option.least, ", ", option.most, "]");
}
std::string Limits(const RealOption& option) {
  return absl::StrCat("a number in [", Text(option.least), ", ", Text(option.most), "]");
}
std::string Limits(const ChoiceOption& option) {
  return absl::StrCat("one of ",
                      absl::StrJoin(option.names, ", ",
                                    [](std::string* out, std::string_view n) { out->append(n); }));
}

absl::Status Refuse(const AttentionOption& option, std::string_view value) {
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(option.name), " is ", ToAbsl(value), ", must be ",
                   std::visit([](const auto& kind) { return Limits(kind); }, option.kind)));
}

template <typename Number>
bool InRange(const Number& kind, const Options& options) {  // NaN is not
  return options.*kind.member >= kind.least && options.*kind.member <= kind.most;
}
bool InRange(const ChoiceOption& kind, const Options& options) {
  return kind.get(options) < kind.names.size();
}

bool Parse(const IntegerOption& kind, std::string_view text, Options& options) {
  const char* const end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, options.*kind.member);
  return error == std::errc() && at == end;
}
bool Parse(const RealOption& kind, std::string_view text, Options& options) {
  const char* const end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, options.*kind.member);
  return error == std::errc() && at == end;
}
bool Parse(const ChoiceOption& kind, std::string_view text, Options& options) {
  const auto name = std::find(kind.names.begin(), kind.names.end(), text);
  if (name == kind.names.end()) return false;
  kind.set(options, static_cast<size_t>(name - kind.names.begin()));
  return true;
}

}  // namespace

std::string_view Name(PolicyKind kind) { return NameOf(kPolicies, kind); }
std::string_view Name(RopeScaling scaling) { return NameOf(kScalings, scaling); }
std::string_view Name(CachePolicy policy) { return NameOf(kCaches, policy); }
std::string_view Name(Scoring scoring) { return NameOf(kScorings, scoring); }
std::string_view Name(RepresentativeKind kind) { return NameOf(kRepresentatives, kind); }

std::span<const AttentionOption> OptionTable() {
  using memstore::limits::kMaxBlockTokens;
  using memstore::limits::kMaxSelect;
  static const AttentionOption table[] = {
      {.name = "policy",
       .help = "which tokens a query attends",
       .kind = Choice<&Options::policy>(kPolicies),
       .recipe = true,
       .matters = Always},
      {.name = "rope-scaling",
       .help = "linear: positions / factor (PI); ntk: base * factor^(D/(D-2))",
       .kind = Choice<&Options::rope_scaling>(kScalings),
       .recipe = true,
       .matters = Always},
      {.name = "rope-factor",
       .help = "factor of --rope-scaling",
       .kind = RealOption{&Options::rope_factor, 1, 1e6},
       .recipe = true,
       .matters = Scales},
      {.name = "n-init",
       .help = "tokens kept from the start of the text (sinks)",
       .kind = IntegerOption{&Options::n_init, 0, kMaxTokens},
       .recipe = true,
       .matters = HasWindow},
      {.name = "n-local",
       .help = "tokens of the sliding window",
       .kind = IntegerOption{&Options::n_local, 1, kMaxTokens},
       .recipe = true,
       .matters = HasWindow},
      {.name = "block-tokens",
       .help = "tokens per memory block",
       .kind = IntegerOption{&Options::block_tokens, 1, kMaxBlockTokens},
       .recipe = true,
       .matters = HasMemory},
      {.name = "top-k",
       .help = "blocks retrieved per exec block and layer",
       .kind = IntegerOption{&Options::top_k, 0, kMaxSelect},
       .recipe = true,
       .matters = HasMemory},
      {.name = "representatives",
       .help =
           "what stands for a block: the mean of its --repr-top-k keys that drew most attention "
           "(the paper's), or the bounds of all its keys (Quest)",
       .kind = Choice<&Options::representative>(kRepresentatives),
       .recipe = true,
       .matters = Retrieves},
      {.name = "repr-top-k",
       .help = "tokens of a block whose keys make its --representatives mean-key",
       .kind = IntegerOption{&Options::repr_top_k, 1, kMaxBlockTokens},
       .recipe = true,
       .matters = HasMeanKeys},
      {.name = "scoring",
       .help = "relevance of a block: the paper's mean, or a vote of the heads",
       .kind = Choice<&Options::scoring>(kScorings),
       .recipe = true,
       .matters = Retrieves},
      {.name = "far-bias",
       .help = "nats added to the attention logits of the tokens of retrieved blocks; the paper's "
               "is 0",
       .kind = RealOption{&Options::far_bias, -20, 20},
       .recipe = true,
       .matters = Retrieves},
      {.name = "exec-block",
       .help = "prefill tokens that share one retrieval",
       .kind = IntegerOption{&Options::exec_block, 1, kMaxTokens},
       .recipe = true,
       .matters = HasMemory},
      {.name = "cache-blocks",
       .help = "retrieved blocks kept per layer on the device",
       .kind = IntegerOption{&Options::cache_blocks, 0, kMaxTokens},
       .recipe = false,
       .matters = Retrieves},
      {.name = "cache-policy",
       .help = "which cached block goes first",
       .kind = Choice<&Options::cache_policy>(kCaches),
       .recipe = false,
       .matters = Retrieves},
      {.name = "score-decay",
       .help = "decay per exec block of --cache-policy lru-s",
       .kind = RealOption{&Options::score_decay, 0, 1},
       .recipe = false,
       .matters = CachesByMass},
      {.name = "compat",
       .help = "reference: double counting as in the published code, for parity runs; needs "
               "--representatives mean-key",
       .kind = Choice<&Options::compat_reference>(kCompats),
       .recipe = true,
       .matters = CanCountTwice},
  };
  return table;
}

const AttentionOption* FindOption(std::string_view name) {
  const std::span<const AttentionOption> table = OptionTable();
  const auto option = std::find_if(table.begin(), table.end(),
                                   [&](const AttentionOption& o) { return o.name == name; });
  return option == table.end() ? nullptr : &*option;
}

std::string ValueText(const AttentionOption& option, const AttentionOptions& options) {
  if (const auto* choice = std::get_if<ChoiceOption>(&option.kind)) {
    const size_t index = choice->get(options);
    return std::string(index < choice->names.size() ? choice->names[index] : "unknown");
  }
  if (const auto* real = std::get_if<RealOption>(&option.kind)) return Text(options.*real->member);
  return Text(options.*std::get<IntegerOption>(option.kind).member);
}

absl::Status SetOption(const AttentionOption& option, std::string_view text,
                       AttentionOptions& options) {
  AttentionOptions changed = options;
  const bool good = std::visit(
      [&](const auto& kind) { return Parse(kind, text, changed) && InRange(kind, changed); },
      option.kind);
  if (!good) return Refuse(option, text);
  options = changed;
  return absl::OkStatus();
}

absl::Status CheckOption(const AttentionOption& option, const AttentionOptions& options) {
  const bool good =
      std::visit([&](const auto& kind) { return InRange(kind, options); }, option.kind);
  return good ? absl::OkStatus() : Refuse(option, ValueText(option, options));
}

std::string Recipe(const AttentionOptions& options) {
  std::string recipe;
  for (const AttentionOption& option : OptionTable()) {
    if (!option.recipe || !option.matters(options)) continue;
    if (!recipe.empty()) recipe += ' ';
    recipe.append(option.name).append("=").append(ValueText(option, options));
  }
  return recipe;
}

}  // namespace infllm::worker
