// Any bytes can be a haystack: what is taken fits, and what is hidden is where it is said to be.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/status_macros.h"
#include "services/eval/tasks/haystack.h"
#include "tests/fuzz/fuzz_driver.h"

// The first two bytes choose the size and the depth; the rest is the text.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using infllm::services::Haystack;
  using infllm::services::Statement;
  if (size < 2) return 0;
  const int64_t bytes = data[0] * 64;
  const double depth = data[1] / 255.0;
  const Haystack haystack = Haystack::Of(
      std::make_shared<const std::string>(reinterpret_cast<const char*>(data) + 2, size - 2));
  const std::string taken = haystack.Take(bytes);
  INFLLM_CHECK(static_cast<int64_t>(taken.size()) <= bytes);
  INFLLM_CHECK(haystack.Take(bytes + 64).starts_with(taken));
  const std::vector<Statement> statements = {{"Second.", depth}, {"First.", 0}, {"Third.", depth}};
  const auto hidden = haystack.Hide("Before: ", taken, statements);
  std::string rest = hidden.text;
  std::vector<size_t> from_the_end = {0, 1, 2};
  std::sort(from_the_end.begin(), from_the_end.end(),
            [&](size_t a, size_t b) { return hidden.places[a].begin > hidden.places[b].begin; });
  for (const size_t i : from_the_end) {
    const auto begin = static_cast<size_t>(hidden.places[i].begin);
    const auto length = static_cast<size_t>(hidden.places[i].end) - begin;
    INFLLM_CHECK(hidden.text.substr(begin, length) == statements[i].text);
    rest.erase(begin, length);
  }
  // Nothing but gaps was added.
  const auto without_gaps = [](std::string text) {
    std::erase_if(text, [](char c) { return c == ' ' || c == '\n'; });
    return text;
  };
  INFLLM_CHECK(without_gaps(rest) == without_gaps("Before: " + taken));
  return 0;
}
