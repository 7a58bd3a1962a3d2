// From logits to tokens. A NaN logit counts as -inf: never drawn where any logit is above it.
// Equals are as likely as each other, infinite ones too. A row without any logit above -inf says
// nothing: its logprobs are NaN, its tokens drawn as from equals, its likeliest token is 0.
#pragma once

#include <cstdint>

namespace infllm::kernels {

// Chooses a token from a row of logits. With temperature 0 the likeliest, of equals the smaller id.
// Otherwise: the top_k likeliest (0: all), of these the fewest whose probability sums to at least
// top_p, of these the one that `uniform` falls on, in the order of their likelihood. All in double,
// so the same logits and `uniform` give the same token on every machine.
struct SampleItem {
  int64_t row = 0;
  double temperature = 0;
  double top_p = 1;
  int64_t top_k = 0;
  double uniform = 0;  // in [0, 1)
};
struct SampleArgs {
  const float* logits = nullptr;      // [any, vocab]
  const SampleItem* items = nullptr;  // shared memory
  int64_t count = 0;
  int64_t vocab = 0;
  int32_t* out_token = nullptr;  // [count], shared memory
  // [count] ln softmax(logits)[token], before temperature and cuts; may be null.
  double* out_logprob = nullptr;
};

// What a row of logits says of a given token, and its likeliest token.
struct LogProbsArgs {
  const float* logits = nullptr;    // [rows, vocab]
  const int32_t* target = nullptr;  // [rows], shared memory; -1: none
  int64_t rows = 0;
  int64_t vocab = 0;
  double* out_logprob = nullptr;  // [rows] ln softmax(logits)[target], in double; 0 without target
  int32_t* out_argmax = nullptr;  // [rows]; of equals the smaller id
};

}  // namespace infllm::kernels
