#include "services/common/byte_size.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace infllm::services {
namespace {

struct Unit {
  std::string_view name;
  int64_t bytes;
};
constexpr std::array<Unit, 10> kUnits = {{{"", 1},
                                          {"B", 1},
                                          {"KiB", int64_t{1} << 10},
                                          {"MiB", int64_t{1} << 20},
                                          {"GiB", int64_t{1} << 30},
                                          {"TiB", int64_t{1} << 40},
                                          {"kB", 1'000},
                                          {"MB", 1'000'000},
                                          {"GB", 1'000'000'000},
                                          {"TB", 1'000'000'000'000}}};

absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

std::optional<int64_t> UnitBytes(std::string_view name) {
  for (const Unit& unit : kUnits) {
    if (absl::EqualsIgnoreCase(ToAbsl(name), ToAbsl(unit.name))) return unit.bytes;
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<int64_t> ParseByteSize(std::string_view text) {
  int64_t number = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  std::string_view unit_name(rest, static_cast<size_t>(end - rest));
  if (unit_name.size() > 1 && unit_name[0] == ' ') unit_name.remove_prefix(1);
  const std::optional<int64_t> unit = UnitBytes(unit_name);
  if (error == std::errc::invalid_argument || number < 0 || !unit.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", ToAbsl(text),
                     "\" is not a size: give a whole number of bytes, or with a unit of B, KiB, "
                     "MiB, GiB, TiB (1024s) or kB, MB, GB, TB (1000s), e.g. 512MiB"));
  }
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  if (error == std::errc::result_out_of_range || number > kMax / *unit) {
    return absl::OutOfRangeError(
        absl::StrCat("\"", ToAbsl(text), "\" is larger than the largest size, ", kMax, " bytes"));
  }
  return number * *unit;
}

std::string FormatByteSize(int64_t bytes) {
  static constexpr std::array<const char*, 5> kNames = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  // Rounding to one decimal must not print "1024 KiB".
  while (std::abs(value) >= 1023.95 && unit + 1 < kNames.size()) {
    value /= 1024;
    ++unit;
  }
  char number[32];
  std::snprintf(number, sizeof(number), "%.1f", value);
  std::string_view digits = number;
  if (digits.ends_with(".0")) digits.remove_suffix(2);
  return absl::StrCat(ToAbsl(digits), " ", kNames[unit]);
}

}  // namespace infllm::services
