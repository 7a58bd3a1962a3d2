#include "services/memstore/request_id.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace infllm::services {
namespace {

constexpr size_t kMaxBytes = 64;

bool IsSafe(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
         absl::StrContains("-_.:/", absl::string_view(&c, 1));
}

}  // namespace

std::string NewRequestId() {
  thread_local std::mt19937_64 random = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  return absl::StrCat(absl::Hex(random(), absl::kZeroPad16));
}

std::string CleanRequestId(std::string_view given) {
  std::string clean(given.substr(0, kMaxBytes));
  std::ranges::replace_if(
      clean, [](char c) { return !IsSafe(c); }, '_');
  return clean;
}

}  // namespace infllm::services
