#include "services/eval/run/configurations.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "kernels/core/status_macros.h"
#include "worker/attention/option_table.h"

namespace infllm::services {
namespace {

struct NamedPolicy {
  const char* name;
  const char* policy;
  const char* rope_scaling;  // null: as the flags have it
};
constexpr std::array<NamedPolicy, 6> kPolicies = {{{"full", "full", "none"},
                                                   {"pi", "full", "linear"},
                                                   {"ntk", "full", "ntk"},
                                                   {"lm-infinite", "lm-infinite", nullptr},
                                                   {"streaming-llm", "streaming-llm", nullptr},
                                                   {"infllm", "infllm", nullptr}}};

// Options by name and what they are set to, in order.
using Assignments = std::vector<std::pair<std::string, std::string>>;

// The flags after these assignments.
absl::StatusOr<AttentionConfiguration> Assign(const RuntimeFlags& base,
                                              const Assignments& assignments) {
  AttentionConfiguration result{.name = "", .flags = base, .settings = {}};
  worker::AttentionOptions& options = result.flags.attention;
  for (const auto& [name, value] : assignments) {
    INFLLM_RETURN_IF_ERROR(worker::SetOption(*worker::FindOption(name), value, options));
  }
  for (const worker::AttentionOption& option : worker::OptionTable()) {
    if (!option.matters(options)) continue;
    result.settings[std::string(option.name)] = worker::ValueText(option, options);
  }
  return result;
}

struct Variation {
  const worker::AttentionOption* option;
  std::vector<std::string> values;
  std::string name() const { return std::string(option->name); }
};

// What --vary takes: the policy has a flag of its own.
const worker::AttentionOption* FindVariable(const std::string& name) {
  return name == "policy" ? nullptr : worker::FindOption(name);
}
std::string VariableNames() {
  std::vector<std::string> names;
  for (const worker::AttentionOption& option : worker::OptionTable()) {
    if (option.name != "policy") names.emplace_back(option.name);
  }
  return absl::StrJoin(names, ", ");
}

absl::StatusOr<std::vector<Variation>> ParseVariations(const std::vector<std::string>& texts) {
  std::vector<Variation> variations;
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    const std::string name = text.substr(0, equals);
    Variation variation{.option = FindVariable(name), .values = {}};
    if (equals != std::string::npos) {
      variation.values = absl::StrSplit(text.substr(equals + 1), ',', absl::SkipEmpty());
    }
    if (variation.values.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--vary ", text, ": must be FLAG=VALUE,VALUE,..."));
    }
    if (variation.option == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("--vary ", text, ": there is no flag ", name,
                                                     " to vary; there are ", VariableNames()));
    }
    for (const Variation& other : variations) {
      if (other.option != variation.option) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("--vary ", name, " is given twice: give all its values in one"));
    }
    variations.push_back(std::move(variation));
  }
  // An option that matters only with some value of another, such as the factor of a scaling, is
  // varied after it.
  std::stable_partition(variations.begin(), variations.end(), [](const Variation& v) {
    return v.option->matters(worker::AttentionOptions());
  });
  return variations;
}

class Product {
 public:
  Product(const RuntimeFlags& base, const ConfigurationChoice& choice,
          std::vector<Variation> variations)
      : base_(base), choice_(choice), variations_(std::move(variations)) {}

  // Adds all configurations that begin so, with the flags from `next` on varied.
  absl::Status Add(const std::string& name, const Assignments& assignments, size_t next = 0) {
    absl::StatusOr<AttentionConfiguration> made = Assign(base_, assignments);
    if (!made.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("configuration ", name, ": ", made.status().message()));
    }
    const worker::AttentionOptions& options = made->flags.attention;
    while (next < variations_.size() && !variations_[next].option->matters(options)) ++next;
    if (next < variations_.size()) {
      used_.insert(next);
      for (const std::string& value : variations_[next].values) {
        Assignments more = assignments;
        more.emplace_back(variations_[next].name(), value);
        INFLLM_RETURN_IF_ERROR(
            Add(absl::StrCat(name, "/", variations_[next].name(), "=", value), more, next + 1));
      }
      return absl::OkStatus();
    }
    const bool factor_varied =
        std::any_of(variations_.begin(), variations_.end(),
                    [](const Variation& variation) { return variation.name() == "rope-factor"; });
    if (options.rope_scaling != worker::RopeScaling::kNone && !choice_.rope_factor_given &&
        !factor_varied) {
      made->rope_factor_of_length = true;
      made->settings["rope-factor"] = "length / trained length";
    }
    made->name = name;
    const bool twice = std::any_of(made_.begin(), made_.end(),
                                   [&](const auto& other) { return other.name == name; });
    if (!twice) made_.push_back(*std::move(made));
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<AttentionConfiguration>> Take() {
    for (size_t i = 0; i < variations_.size(); ++i) {
      if (used_.contains(i)) continue;
      return absl::InvalidArgumentError(absl::StrCat("--vary ", variations_[i].name(),
                                                     " has no effect on ",
                                                     absl::StrJoin(choice_.policies, ", ")));
    }
    return std::move(made_);
  }

 private:
  const RuntimeFlags& base_;
  const ConfigurationChoice& choice_;
  const std::vector<Variation> variations_;
  std::set<size_t> used_;
  std::vector<AttentionConfiguration> made_;
};

}  // namespace

std::vector<std::string> PolicyNames() {
  std::vector<std::string> names;
  for (const NamedPolicy& policy : kPolicies) names.push_back(policy.name);
  return names;
}

absl::StatusOr<std::vector<AttentionConfiguration>> MakeConfigurations(
    const RuntimeFlags& base, const ConfigurationChoice& choice) {
  INFLLM_ASSIGN_OR_RETURN(std::vector<Variation> variations, ParseVariations(choice.vary));
  Product product(base, choice, std::move(variations));
  for (const std::string& name : choice.policies) {
    const auto policy = std::find_if(kPolicies.begin(), kPolicies.end(),
                                     [&](const NamedPolicy& p) { return p.name == name; });
    if (policy == kPolicies.end()) {
      return absl::InvalidArgumentError(absl::StrCat("--policies: there is no policy ", name,
                                                     "; there are ",
                                                     absl::StrJoin(PolicyNames(), ", ")));
    }
    Assignments assignments = {{"policy", policy->policy}};
    if (policy->rope_scaling != nullptr) {
      assignments.emplace_back("rope-scaling", policy->rope_scaling);
    }
    if (name != "infllm") {
      INFLLM_RETURN_IF_ERROR(product.Add(name, assignments));
      continue;
    }
    for (const std::string& scoring : choice.scorings) {
      Assignments scored = assignments;
      scored.emplace_back("scoring", scoring);
      INFLLM_RETURN_IF_ERROR(product.Add(absl::StrCat(name, "/", scoring), scored));
    }
  }
  return product.Take();
}

absl::StatusOr<RuntimeFlags> FlagsAtLength(const AttentionConfiguration& configuration,
                                           int64_t length, int64_t trained_length) {
  RuntimeFlags flags = configuration.flags;
  if (!configuration.rope_factor_of_length) return flags;
  if (trained_length <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("configuration ", configuration.name,
                     " needs --rope-factor: config.json does not say (max_position_embeddings) on "
                     "what length the model was trained"));
  }
  flags.attention.rope_factor =
      std::max(1.0, static_cast<double>(length) / static_cast<double>(trained_length));
  return flags;
}

absl::StatusOr<int64_t> ParseLength(std::string_view text) {
  constexpr int64_t kMost = int64_t{1} << 30;
  std::string digits(text);
  int64_t unit = 1;
  if (!digits.empty()) {
    const char last = static_cast<char>(std::toupper(static_cast<unsigned char>(digits.back())));
    unit = last == 'K' ? 1024 : last == 'M' ? 1024 * 1024 : 1;
    if (unit > 1) digits.pop_back();
  }
  int64_t number = 0;
  if (digits.find_first_not_of("0123456789") != std::string::npos ||
      !absl::SimpleAtoi(digits, &number) || number < 1 || number > kMost / unit) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", std::string(text),
                     "\" is not a length in tokens: a whole number from 1 to 1024M, such as 4096, "
                     "64K or 1M"));
  }
  return number * unit;
}

absl::StatusOr<std::vector<double>> ParseDepths(std::string_view text) {
  const std::string all(text);
  const auto invalid = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", all,
                     "\" are not depths: percentages from 0 to 100, as FIRST:LAST:STEP (0:100:10) "
                     "or as a list (0,50,100)"));
  };
  const bool range = absl::StrContains(all, ':');
  std::vector<double> numbers;
  for (const absl::string_view part : absl::StrSplit(all, range ? ':' : ',')) {
    double number = 0;
    // SimpleAtod reads "inf" and "nan" too, which fail the comparison.
    if (!absl::SimpleAtod(part, &number) || !(number >= 0 && number <= 100)) return invalid();
    numbers.push_back(number);
  }
  if (range) {
    constexpr double kFinest = 0.01;
    if (numbers.size() != 3 || numbers[1] < numbers[0] || numbers[2] < kFinest) return invalid();
    const double first = numbers[0], last = numbers[1], step = numbers[2];
    const int64_t count = static_cast<int64_t>(std::floor((last - first) / step + 1e-9)) + 1;
    numbers.clear();
    for (int64_t i = 0; i < count; ++i) {
      numbers.push_back(std::min(last, first + step * static_cast<double>(i)));
    }
  }
  for (double& number : numbers) number /= 100;
  std::sort(numbers.begin(), numbers.end());
  numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
  return numbers;
}

}  // namespace infllm::services
