#pragma once

#include <atomic>

namespace infllm::services {

// While one lives, SIGINT, SIGTERM and SIGHUP set a flag instead of ending the process, so that a
// long job can stop cleanly; a second signal ends it at once. A SIGHUP that is ignored from the
// start (nohup) stays so. One at a time.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  const std::atomic<bool>* flag() const;
};

// Exit status of a command that was interrupted, as shells expect it: 128 + the signal, 130 for ^C.
// 0 if no Interrupt has caught a signal.
int InterruptedExit();

}  // namespace infllm::services
