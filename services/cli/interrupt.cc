#include "services/cli/interrupt.h"

#include <unistd.h>
#include <csignal>

namespace infllm::services {
namespace {

std::atomic<bool> interrupted{false};

void OnSignal(int) {
  if (interrupted.exchange(true)) ::_exit(kInterruptedExit);
}

void SetHandler(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

Interrupt::Interrupt() {
  interrupted = false;
  SetHandler(OnSignal);
}
Interrupt::~Interrupt() { SetHandler(SIG_DFL); }
const std::atomic<bool>* Interrupt::flag() const { return &interrupted; }

}  // namespace infllm::services
