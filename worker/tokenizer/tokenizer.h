#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace infllm::worker {

// Turns token ids into text as they come. Emits whole UTF-8 characters only: bytes of an unfinished
// character wait for the next token, or for Finish(), which gives U+FFFD for what never completed.
class StreamDecoder {
 public:
  virtual ~StreamDecoder() = default;
  // The text that `token` completes; often a piece, sometimes empty.
  virtual std::string Add(int32_t token) = 0;
  virtual std::string Finish() = 0;
};

// Text to token ids and back, as the model was trained. Immutable, thread-safe.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual int32_t vocab_size() const = 0;
  virtual int32_t bos_id() const = 0;  // -1 if the model has none
  virtual int32_t eos_id() const = 0;  // -1 if the model has none
  // Without BOS or EOS. Any bytes are accepted; invalid UTF-8 is read as U+FFFD.
  virtual std::vector<int32_t> Encode(std::string_view text) const = 0;
  // The real library's Decode: control tokens vanish, the dummy prefix is removed. An id outside
  // the vocabulary, which a model with padded embeddings can emit, reads like the unknown piece.
  virtual std::string Decode(std::span<const int32_t> ids) const = 0;
  // `continuation`: the first token follows earlier text, so its leading space is kept. The decoder
  // must not outlive the tokenizer.
  virtual std::unique_ptr<StreamDecoder> NewStreamDecoder(bool continuation) const = 0;
  // The piece as written in the vocabulary. REQUIRES: 0 <= id < vocab_size().
  virtual std::string_view piece(int32_t id) const = 0;
};

// Reads a SentencePiece `tokenizer.model` (BPE or unigram).
//   NOT_FOUND, INVALID_ARGUMENT (the text says what is wrong with the file and where)
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePiece(const std::string& path);
// The same from bytes in memory.
absl::StatusOr<std::unique_ptr<Tokenizer>> ParseSentencePiece(std::string_view bytes);

}  // namespace infllm::worker
