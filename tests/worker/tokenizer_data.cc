#include "tests/worker/tokenizer_data.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "nlohmann/json.hpp"

namespace infllm::worker {
namespace {

const std::string kFolder = INFLLM_TEST_DATA "/tokenizers/";

std::vector<nlohmann::json> ReadLines(const std::string& path) {
  std::ifstream stream(path);
  std::vector<nlohmann::json> rows;
  for (std::string line; std::getline(stream, line);) rows.push_back(nlohmann::json::parse(line));
  return rows;
}

std::string FromHex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

}  // namespace

std::vector<std::string> TokenizerModelNames() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder + "models")) {
    names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string TokenizerModelPath(const std::string& name) {
  return kFolder + "models/" + name + ".model";
}

std::vector<std::string> TokenizerInputs() {
  std::vector<std::string> inputs;
  for (const nlohmann::json& row : ReadLines(kFolder + "inputs.jsonl")) {
    inputs.push_back(row.contains("hex") ? FromHex(row["hex"]) : row["text"].get<std::string>());
  }
  return inputs;
}

EncodeGoldens ReadEncodeGoldens(const std::string& model_name) {
  EncodeGoldens goldens;
  for (const nlohmann::json& row : ReadLines(kFolder + model_name + ".encode.jsonl")) {
    if (row.contains("repeat")) {
      goldens.long_text = {row["repeat"], row["count"], row["ids_fnv"], row["text_fnv"]};
      continue;
    }
    EncodeGolden golden{.ids = row["ids"], .decoded = std::nullopt};
    if (row.contains("decoded")) golden.decoded = row["decoded"].get<std::string>();
    goldens.by_input.push_back(std::move(golden));
  }
  return goldens;
}

std::vector<DecodeGolden> ReadDecodeGoldens(const std::string& model_name) {
  std::vector<DecodeGolden> goldens;
  for (const nlohmann::json& row : ReadLines(kFolder + model_name + ".decode.jsonl")) {
    goldens.push_back({row["ids"], row["decoded"]});
  }
  return goldens;
}

}  // namespace infllm::worker
