// Any bytes as a SentencePiece model; one that parses must encode and decode within its contract.
#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/status_macros.h"
#include "tests/fuzz/fuzz_driver.h"
#include "worker/tokenizer/tokenizer.h"
#include "worker/tokenizer/utf8.h"

namespace infllm::worker {
namespace {

void CheckText(const Tokenizer& tokenizer, std::string_view text) {
  const std::vector<int32_t> ids = tokenizer.Encode(text);
  for (const int32_t id : ids) INFLLM_CHECK(id >= 0 && id < tokenizer.vocab_size());
  INFLLM_CHECK(IsValidUtf8(tokenizer.Decode(ids)));
}

void CheckIds(const Tokenizer& tokenizer, std::string_view bytes) {
  std::vector<int32_t> ids;
  for (const char byte : bytes) {
    ids.push_back(static_cast<uint8_t>(byte) * 3 % (tokenizer.vocab_size() + 2) - 1);
  }
  const auto decoder = tokenizer.NewStreamDecoder(/*continuation=*/false);
  std::string text;
  for (const int32_t id : ids) {
    const std::string part = decoder->Add(id);
    INFLLM_CHECK(IsValidUtf8(part));
    text += part;
  }
  text += decoder->Finish();
  INFLLM_CHECK(text == tokenizer.Decode(ids));
}

}  // namespace
}  // namespace infllm::worker

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using infllm::worker::CheckIds;
  using infllm::worker::CheckText;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = infllm::worker::ParseSentencePiece(bytes);
  if (!tokenizer.ok()) {
    INFLLM_CHECK(tokenizer.status().code() == absl::StatusCode::kInvalidArgument);
    return 0;
  }
  CheckText(**tokenizer,
            " the <mask> of\xE3\x80\x80 Stra\xC3\x9F"
            "e...\xEF\xBD\xB1\xF0\x9F\x98\x80\xFF\t");
  // Its own bytes hold all its pieces, and much that is not UTF-8.
  CheckText(**tokenizer, bytes.substr(0, 2048));
  CheckIds(**tokenizer, bytes.substr(0, 256));
  return 0;
}
