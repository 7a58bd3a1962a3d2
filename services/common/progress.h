#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace infllm::services {

// Progress of a long job on stderr: a bar with rate and ETA on a terminal, else a plain line every
// few seconds. Silent for jobs that end quickly.
class Progress {
 public:
  // `unit` is what is counted: "tokens".
  Progress(std::string label, std::string unit, int64_t total);
  ~Progress() { Finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Update(int64_t done);
  // Ends the bar's line. Called by the destructor too.
  void Finish();

 private:
  using Clock = std::chrono::steady_clock;
  void Draw(Clock::time_point now);

  const std::string label_, unit_;
  const int64_t total_;
  const bool terminal_;
  const Clock::time_point start_;
  Clock::time_point last_draw_;
  int64_t done_ = 0;
  bool drawn_ = false;
};

// "1,234,567"
std::string WithThousands(int64_t value);
// "12 s", "3 min 20 s", "1 h 05 min"
std::string HumanSeconds(double seconds);
// Largest resident set of this process so far, or since ResetPeakRss().
int64_t PeakRssBytes();
// Does nothing where the system does not allow it.
void ResetPeakRss();

}  // namespace infllm::services
