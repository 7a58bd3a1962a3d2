// Runs the real binaries as a user would.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/subprocess.h"
#include "tests/support/temp_dir.h"

namespace infllm {

using ::infllm::testing::Subprocess;
using ::infllm::testing::TempDir;

inline const std::string kModel = INFLLM_TEST_DATA "/stories260K";

inline std::string StoryText(int sentences) {
  std::string text;
  for (int i = 0; i < sentences; ++i) {
    text += "Once there was a dog named Tim who lived in house number " + std::to_string(i * 37) +
            ". He liked to play with a big red ball in the park.\n";
  }
  return text;
}

class CliTest : public ::testing::Test {
 protected:
  struct Result {
    int status;
    std::string out, err;
    // Its output, as nlohmann::json or a type like it.
    template <typename Json>
    Json json() const {
      return Json::parse(out);
    }
  };
  Result Run(std::vector<std::string> arguments, const std::string& stdin_path = "/dev/null") {
    arguments.insert(arguments.begin(), INFLLM_CLI);
    Subprocess process(arguments, stdin_path);
    const int status = process.Wait();
    return {status, process.out(), process.err()};
  }
  // Runs a line of shell in which "$@" is the command.
  Result RunInShell(const std::string& line, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"/bin/sh", "-c", line, "sh", INFLLM_CLI});
    Subprocess process(arguments);
    const int status = process.Wait();
    return {status, process.out(), process.err()};
  }
  // Small parameters of the method, so that short texts have many blocks.
  std::vector<std::string> With(std::vector<std::string> arguments) {
    for (const char* flag :
         {"--dtype=f32", "--n-init=8", "--n-local=64", "--block-tokens=16", "--top-k=4",
          "--exec-block=32", "--cache-blocks=6", "--repr-top-k=2"}) {
      arguments.push_back(flag);
    }
    return arguments;
  }

  TempDir dir_;
};

}  // namespace infllm
