// The options of the attention policies, each defined once. Flags, presets, infllm.json, the
// configurations of an evaluation, range checks and error messages all read this table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "absl/status/status.h"
#include "worker/attention/attention_options.h"

namespace infllm::worker {

struct IntegerOption {
  int64_t AttentionOptions::*member;
  int64_t least;
  int64_t most;
};
struct RealOption {
  double AttentionOptions::*member;
  double least;
  double most;
};
// One of `names`; get and set speak of an index into them.
struct ChoiceOption {
  std::span<const std::string_view> names;
  size_t (*get)(const AttentionOptions& options);
  void (*set)(AttentionOptions& options, size_t index);
};

// Its default is what AttentionOptions() holds.
struct AttentionOption {
  std::string_view name;  // as everywhere outside this code: the flag without dashes
  std::string_view help;  // with units
  std::variant<IntegerOption, RealOption, ChoiceOption> kind;
  // Whether it decides what is computed: the keys and values of a context, or which of them are
  // attended and how. The others decide what that costs.
  bool recipe;
  // Whether it has any effect next to the other options.
  bool (*matters)(const AttentionOptions& options);
};

// In the order in which they are shown: an option comes after those that make it matter.
std::span<const AttentionOption> OptionTable();
// Null if there is no option of that name.
const AttentionOption* FindOption(std::string_view name);

// The value as SetOption reads it back, exactly: "64", "0.1", "mean-key".
std::string ValueText(const AttentionOption& option, const AttentionOptions& options);

// Gives the option the value that `text` spells.
//   INVALID_ARGUMENT  names the option, the text and what it must be; `options` is as it was
absl::Status SetOption(const AttentionOption& option, std::string_view text,
                       AttentionOptions& options);

// Whether the value is in its range or a known choice: INVALID_ARGUMENT as for SetOption.
absl::Status CheckOption(const AttentionOption& option, const AttentionOptions& options);

// What is computed, in words that do not change: "name=value" of every recipe option that matters,
// in the order of the table, joined by spaces. One model under two option sets of the same recipe
// computes the same; if the recipes differ, so do the results for some text (but for a few values
// that come to the same, as a rope-factor of 1 and no scaling).
std::string Recipe(const AttentionOptions& options);

}  // namespace infllm::worker
