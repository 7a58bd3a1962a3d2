#pragma once

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

extern char** environ;

namespace infllm::testing {

// A program started by a test, its output in files. Killed if it still runs when the object goes.
class Subprocess {
 public:
  // argv[0] is the path of the program. `stdin_path` is read as its standard input.
  explicit Subprocess(std::vector<std::string> argv, const std::string& stdin_path = "/dev/null") {
    std::vector<char*> pointers;
    for (std::string& argument : argv) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    const int mode = O_WRONLY | O_CREAT | O_TRUNC;
    posix_spawn_file_actions_addopen(&actions, 0, stdin_path.c_str(), O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, dir_.file("out").c_str(), mode, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, dir_.file("err").c_str(), mode, 0600);
    const int error = posix_spawn(&pid_, pointers[0], &actions, nullptr, pointers.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    EXPECT_EQ(error, 0) << "cannot start " << argv[0];
    if (error != 0) pid_ = -1;
  }
  ~Subprocess() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    Wait();
  }
  Subprocess(const Subprocess&) = delete;
  Subprocess& operator=(const Subprocess&) = delete;

  pid_t pid() const { return pid_; }
  void Signal(int signal) { ::kill(pid_, signal); }

  // Waits for the end; the exit status, or minus the signal that ended it.
  int Wait() {
    int status = 0;
    if (pid_ <= 0 || ::waitpid(pid_, &status, 0) != pid_) return -1;
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  // Waits until what the program printed contains `text`; false if it ends without.
  bool WaitForOutput(const std::string& text) {
    while (true) {
      int status = 0;
      const bool ended = ::waitpid(pid_, &status, WNOHANG) != 0;
      if ((out() + err()).find(text) != std::string::npos) return true;
      if (ended) {
        pid_ = -1;
        return false;
      }
      ::usleep(2000);  // a poll of another process, bounded by its end and by the test's timeout
    }
  }

  std::string out() const { return Read("out"); }
  std::string err() const { return Read("err"); }

 private:
  std::string Read(const char* name) const {
    std::ifstream file(dir_.file(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  TempDir dir_;
  pid_t pid_ = -1;
};

}  // namespace infllm::testing
