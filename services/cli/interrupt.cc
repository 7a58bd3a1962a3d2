#include "services/cli/interrupt.h"

#include <unistd.h>

#include <csignal>

namespace infllm::services {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};

std::atomic<bool> interrupted{false};
std::atomic<int> caught{0};
static_assert(std::atomic<int>::is_always_lock_free, "used in a signal handler");

void OnSignal(int signal) {
  if (interrupted.exchange(true)) ::_exit(128 + signal);
  caught = signal;
}

void SetHandler(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  for (const int signal : kSignals) {
    struct sigaction before {};
    ::sigaction(signal, nullptr, &before);
    if (signal == SIGHUP && before.sa_handler == SIG_IGN) continue;
    ::sigaction(signal, &action, nullptr);
  }
}

}  // namespace

Interrupt::Interrupt() {
  interrupted = false;
  SetHandler(OnSignal);
}
Interrupt::~Interrupt() { SetHandler(SIG_DFL); }
const std::atomic<bool>* Interrupt::flag() const { return &interrupted; }

int InterruptedExit() { return caught == 0 ? 0 : 128 + caught; }

}  // namespace infllm::services
