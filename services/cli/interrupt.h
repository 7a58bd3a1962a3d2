#pragma once

#include <atomic>

namespace infllm::services {

// While one lives, SIGINT and SIGTERM set a flag instead of ending the process, so that a long job
// can stop cleanly; a second signal ends it at once. One at a time.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  const std::atomic<bool>* flag() const;
};

// Exit status of a command that was interrupted, as shells expect it.
inline constexpr int kInterruptedExit = 130;

}  // namespace infllm::services
