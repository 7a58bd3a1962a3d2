// Reads tests/data/tokenizers: models, inputs, goldens.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace infllm::worker {

// The models there, by name.
std::vector<std::string> TokenizerModelNames();
std::string TokenizerModelPath(const std::string& name);

// The texts that the encoding goldens are of; some are not UTF-8.
std::vector<std::string> TokenizerInputs();

struct EncodeGolden {
  std::vector<int32_t> ids;
  std::optional<std::string> decoded;  // nothing: the input itself
};
// All inputs, joined by newlines, `repeat` times over: too long to write its ids down.
struct LongTextGolden {
  int repeat = 0;
  size_t count = 0;
  std::string ids_fnv;
  std::string text_fnv;
};
struct EncodeGoldens {
  std::vector<EncodeGolden> by_input;
  LongTextGolden long_text;
};
EncodeGoldens ReadEncodeGoldens(const std::string& model_name);

struct DecodeGolden {
  std::vector<int32_t> ids;
  std::string decoded;
};
std::vector<DecodeGolden> ReadDecodeGoldens(const std::string& model_name);

}  // namespace infllm::worker
