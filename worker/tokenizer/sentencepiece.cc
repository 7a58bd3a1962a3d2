#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "worker/tokenizer/charsmap.h"
#include "worker/tokenizer/model_proto.h"
#include "worker/tokenizer/normalizer.h"
#include "worker/tokenizer/segmenter.h"
#include "worker/tokenizer/stream_decoder.h"
#include "worker/tokenizer/tokenizer.h"
#include "worker/tokenizer/vocabulary.h"

namespace infllm::worker {
namespace {

class SentencePieceTokenizer final : public Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(ModelProto model) {
    const ModelType type = model.model_type;
    const NormalizerOptions options = {
        .add_dummy_prefix = model.normalizer.add_dummy_prefix,
        .dummy_is_suffix = model.treat_whitespace_as_suffix,
        .remove_extra_whitespaces = model.normalizer.remove_extra_whitespaces,
        .escape_whitespaces = model.normalizer.escape_whitespaces,
    };
    INFLLM_ASSIGN_OR_RETURN(Charsmap charsmap,
                            Charsmap::Parse(model.normalizer.precompiled_charsmap));
    INFLLM_ASSIGN_OR_RETURN(Vocabulary vocabulary, Vocabulary::Create(std::move(model)));
    // The parts refer to the vocabulary, so it gets its place first.
    std::unique_ptr<SentencePieceTokenizer> tokenizer(
        new SentencePieceTokenizer(std::move(vocabulary), options, std::move(charsmap)));
    if (type == ModelType::kBpe) {
      tokenizer->segmenter_ = NewBpeSegmenter(tokenizer->vocabulary_);
    } else {
      INFLLM_ASSIGN_OR_RETURN(tokenizer->segmenter_, NewUnigramSegmenter(tokenizer->vocabulary_));
    }
    return tokenizer;
  }

  int32_t vocab_size() const override { return vocabulary_.size(); }
  int32_t bos_id() const override { return vocabulary_.bos_id(); }
  int32_t eos_id() const override { return vocabulary_.eos_id(); }
  std::string_view piece(int32_t id) const override { return vocabulary_.piece(id).text; }

  std::vector<int32_t> Encode(std::string_view text) const override {
    return segmenter_->Segment(normalizer_.Normalize(text));
  }

  std::string Decode(std::span<const int32_t> ids) const override {
    SentencePieceStreamDecoder decoder(vocabulary_, leading_space_, /*continuation=*/false);
    std::string text;
    for (const int32_t id : ids) text += decoder.Add(id);
    return text + decoder.Finish();
  }

  std::unique_ptr<StreamDecoder> NewStreamDecoder(bool continuation) const override {
    return std::make_unique<SentencePieceStreamDecoder>(vocabulary_, leading_space_, continuation);
  }

 private:
  SentencePieceTokenizer(Vocabulary vocabulary, const NormalizerOptions& options, Charsmap charsmap)
      : vocabulary_(std::move(vocabulary)),
        normalizer_(options, std::move(charsmap), vocabulary_),
        leading_space_{.drop_first = options.add_dummy_prefix,
                       .drop_all = options.remove_extra_whitespaces} {}

  const Vocabulary vocabulary_;
  const Normalizer normalizer_;
  const LeadingSpaceRule leading_space_;
  std::unique_ptr<Segmenter> segmenter_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePiece(const std::string& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    return absl::NotFoundError(absl::StrCat(path, ": no such tokenizer model"));
  }
  if (!std::filesystem::is_regular_file(status)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a file"));
  }
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (!error && size > kMaxModelBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", size, " bytes; a tokenizer model has at most ", kMaxModelBytes));
  }
  std::ifstream stream(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(stream)),
                          std::istreambuf_iterator<char>());
  if (!stream) return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = ParseSentencePiece(bytes);
  if (!tokenizer.ok()) {
    return absl::Status(tokenizer.status().code(),
                        absl::StrCat(path, ": ", tokenizer.status().message()));
  }
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseSentencePiece(std::string_view bytes) {
  INFLLM_ASSIGN_OR_RETURN(ModelProto model, ParseModelProto(bytes));
  return SentencePieceTokenizer::Create(std::move(model));
}

}  // namespace infllm::worker
