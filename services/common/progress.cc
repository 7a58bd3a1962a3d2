#include "services/common/progress.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <utility>

#include "absl/strings/str_format.h"

namespace infllm::services {
namespace {

constexpr std::chrono::milliseconds kBarPeriod{100};
constexpr std::chrono::seconds kLinePeriod{5};
constexpr int kBarWidth = 30;

double Seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

}  // namespace

Progress::Progress(std::string label, std::string unit, int64_t total)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      terminal_(::isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      last_draw_(start_) {}

void Progress::Update(int64_t done) {
  done_ = done;
  const Clock::time_point now = Clock::now();
  if (terminal_ ? now - last_draw_ >= kBarPeriod : now - last_draw_ >= kLinePeriod) Draw(now);
}

void Progress::Draw(Clock::time_point now) {
  last_draw_ = now;
  drawn_ = true;
  const double elapsed = Seconds(now - start_);
  const double rate = elapsed > 0 ? static_cast<double>(done_) / elapsed : 0;
  const double share = total_ > 0 ? static_cast<double>(done_) / static_cast<double>(total_) : 1;
  const std::string eta =
      rate > 0 ? HumanSeconds(static_cast<double>(total_ - done_) / rate) : std::string("?");
  const std::string text = absl::StrFormat("%3.0f%%  %s/%s %s  %s %s/s  ETA %s", share * 100,
                                           WithThousands(done_), WithThousands(total_), unit_,
                                           WithThousands(static_cast<int64_t>(rate)), unit_, eta);
  if (terminal_) {
    const int filled = static_cast<int>(share * kBarWidth);
    const std::string bar = std::string(static_cast<size_t>(filled), '#') +
                            std::string(static_cast<size_t>(kBarWidth - filled), '.');
    absl::FPrintF(stderr, "\r\033[K%s [%s] %s", label_, bar, text);
  } else {
    absl::FPrintF(stderr, "%s %s\n", label_, text);
  }
  std::fflush(stderr);
}

void Progress::Finish() {
  if (!drawn_) return;
  Draw(Clock::now());
  if (terminal_) absl::FPrintF(stderr, "\n");
  drawn_ = false;
}

std::string WithThousands(int64_t value) {
  std::string digits = absl::StrFormat("%d", value);
  for (int64_t at = static_cast<int64_t>(digits.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3) {
    digits.insert(static_cast<size_t>(at), ",");
  }
  return digits;
}

std::string HumanSeconds(double seconds) {
  const auto total = static_cast<int64_t>(std::max(0.0, seconds) + 0.5);
  if (total < 60) return absl::StrFormat("%d s", total);
  if (total < 3600) return absl::StrFormat("%d min %02d s", total / 60, total % 60);
  return absl::StrFormat("%d h %02d min", total / 3600, total / 60 % 60);
}

int64_t PeakRssBytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

void ResetPeakRss() { std::ofstream("/proc/self/clear_refs") << "5"; }

}  // namespace infllm::services
