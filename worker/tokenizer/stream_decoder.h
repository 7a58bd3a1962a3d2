#pragma once

#include <cstdint>
#include <string>

#include "worker/tokenizer/tokenizer.h"
#include "worker/tokenizer/vocabulary.h"

namespace infllm::worker {

// How a model's normalisation is undone at the start of a text.
struct LeadingSpaceRule {
  bool drop_first = false;  // the dummy prefix
  bool drop_all = false;    // extra spaces were removed, so none can be meant
};

// Decodes as the library's Decode does, one token at a time.
class SentencePieceStreamDecoder final : public StreamDecoder {
 public:
  // `vocabulary` must outlive the decoder. `continuation`: see Tokenizer::NewStreamDecoder.
  SentencePieceStreamDecoder(const Vocabulary& vocabulary, LeadingSpaceRule rule, bool continuation)
      : vocabulary_(vocabulary), rule_(rule), at_start_(!continuation) {}

  std::string Add(int32_t token) override;
  std::string Finish() override;

 private:
  // Moves what byte pieces have completed to `text`; all of it if no byte can follow.
  void TakeBytes(bool more_may_follow, std::string& text);
  void AppendPiece(int32_t token, std::string& text);

  const Vocabulary& vocabulary_;
  const LeadingSpaceRule rule_;
  bool at_start_;      // no text yet, and a leading space may still be dropped
  std::string bytes_;  // of a character that byte pieces have begun; at most 3
};

}  // namespace infllm::worker
