#include "services/eval/tasks/task_files.h"

#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <map>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/model/json_depth.h"

namespace infllm::services {
namespace {

using Json = nlohmann::json;

constexpr size_t kMostFileBytes = size_t{1} << 30;

absl::Status BadLine(int64_t line, const std::string& what) {
  return absl::DataLossError(absl::StrFormat("line %d: %s", line, what));
}

// Calls visit(line number from 1, line) for each line that is not blank, until one fails.
template <typename Visit>
absl::Status VisitLines(std::string_view text, const Visit& visit) {
  for (int64_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.find_first_not_of(" \t") == std::string_view::npos) continue;
    INFLLM_RETURN_IF_ERROR(visit(number, line));
  }
  return absl::OkStatus();
}

absl::StatusOr<Json> ParseObject(int64_t number, std::string_view line) {
  if (const absl::Status depth = worker::CheckJsonDepth(line); !depth.ok()) {
    return BadLine(number, std::string(depth.message()));
  }
  Json json = Json::parse(line, /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return BadLine(number, "is not a JSON object");
  return json;
}

absl::StatusOr<std::string> StringField(int64_t number, const Json& json, const char* name) {
  const auto field = json.find(name);
  if (field == json.end() || !field->is_string()) {
    return BadLine(number, absl::StrFormat("has no string \"%s\"", name));
  }
  return field->get<std::string>();
}

absl::StatusOr<LongChatRecord> ParseLongChatLine(int64_t number, std::string_view line) {
  constexpr std::string_view kStart = "Now the record start:\n\n";
  constexpr std::string_view kOver = "\nNow the record is over.";
  INFLLM_ASSIGN_OR_RETURN(const Json json, ParseObject(number, line));
  INFLLM_ASSIGN_OR_RETURN(const std::string prompt, StringField(number, json, "prompt"));
  LongChatRecord record;
  const auto expected = json.find("expected_number");
  if (expected == json.end() || !expected->is_number_unsigned()) {
    return BadLine(number, "has no number \"expected_number\"");
  }
  record.answer = std::to_string(expected->get<uint64_t>());
  const auto index = json.find("random_idx");
  if (index == json.end() || !index->is_array() || index->empty() ||
      !((*index)[0].is_string() || (*index)[0].is_number_unsigned())) {
    return BadLine(number, "\"random_idx\" does not begin with the name of a line");
  }
  record.name = (*index)[0].is_string() ? (*index)[0].get<std::string>() : (*index)[0].dump();

  const size_t start = prompt.find(kStart);
  const size_t over = prompt.rfind(kOver);
  if (start == std::string::npos || over == std::string::npos || over < start + kStart.size()) {
    return BadLine(number,
                   "\"prompt\" has no record between \"Now the record start:\" and "
                   "\"Now the record is over.\"");
  }
  record.before = prompt.substr(0, start + kStart.size());
  const std::string_view body =
      std::string_view(prompt).substr(record.before.size(), over - record.before.size());
  INFLLM_RETURN_IF_ERROR(VisitLines(body, [&](int64_t, std::string_view entry) {
    record.lines.emplace_back(entry);
    return absl::OkStatus();
  }));
  const std::string begin = "line " + record.name + ":";
  const auto asked =
      std::find_if(record.lines.begin(), record.lines.end(),
                   [&](const std::string& entry) { return entry.starts_with(begin); });
  if (asked == record.lines.end()) {
    return BadLine(number, "the record has no \"" + begin + "\"");
  }
  if (asked->find("<" + record.answer + ">") == std::string::npos) {
    return BadLine(number, "the record's \"" + begin + "\" does not say " + record.answer);
  }
  record.asked = static_cast<size_t>(asked - record.lines.begin());
  return record;
}

absl::StatusOr<KeyValueRecord> ParseKeyValueLine(int64_t number, std::string_view line) {
  INFLLM_ASSIGN_OR_RETURN(const Json json, ParseObject(number, line));
  INFLLM_ASSIGN_OR_RETURN(const std::string key, StringField(number, json, "key"));
  INFLLM_ASSIGN_OR_RETURN(const std::string value, StringField(number, json, "value"));
  const auto pairs = json.find("ordered_kv_records");
  if (pairs == json.end() || !pairs->is_array() || pairs->size() < 2) {
    return BadLine(number, "\"ordered_kv_records\" is not a list of at least 2 pairs");
  }
  KeyValueRecord record;
  std::optional<size_t> asked;
  for (const Json& pair : *pairs) {
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string()) {
      return BadLine(number, absl::StrFormat("\"ordered_kv_records\"[%d] is not a pair of strings",
                                             record.pairs.size()));
    }
    record.pairs.emplace_back(pair[0].get<std::string>(), pair[1].get<std::string>());
    if (record.pairs.back() == std::pair(key, value)) asked = record.pairs.size() - 1;
  }
  if (value.empty() || !asked) {
    return BadLine(number, "\"key\" and \"value\" are none of \"ordered_kv_records\"");
  }
  record.asked = *asked;
  return record;
}

std::string_view Trim(std::string_view text) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  while (text.ends_with(' ')) text.remove_suffix(1);
  return text;
}

// Reads bAbI's lines one after the other: a story ends where numbers start at 1 again.
class BabiReader {
 public:
  absl::Status Read(int64_t number, std::string_view line) {
    int64_t id = 0;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), id);
    std::string_view text = line.substr(static_cast<size_t>(end - line.data()));
    if (error != std::errc() || !text.starts_with(' ') || id < 1) {
      return BadLine(number, "does not begin with a number from 1 and a space");
    }
    if (id == 1) {
      facts_.clear();
      fact_of_id_.clear();
      last_id_ = 0;
    }
    if (id != last_id_ + 1) {
      return BadLine(number, absl::StrFormat("is numbered %d and follows %d", id, last_id_));
    }
    last_id_ = id;
    const size_t tab = text.find('\t');
    const std::string_view sentence = Trim(text.substr(0, tab));
    if (sentence.empty()) return BadLine(number, "has no sentence");
    if (tab != std::string_view::npos) return ReadQuestion(number, sentence, text.substr(tab + 1));
    fact_of_id_[id] = facts_.size();
    facts_.emplace_back(sentence);
    return absl::OkStatus();
  }

  std::vector<BabiQuestion> Finish() && { return std::move(questions_); }

 private:
  // `rest`: the answer, a tab, and the numbers of the supporting facts.
  absl::Status ReadQuestion(int64_t number, std::string_view sentence, std::string_view rest) {
    const size_t tab = rest.find('\t');
    BabiQuestion question;
    question.question = sentence;
    question.answer = Trim(rest.substr(0, tab));
    if (question.answer.empty()) return BadLine(number, "the question has no answer");
    std::string_view ids = tab == std::string_view::npos ? "" : Trim(rest.substr(tab + 1));
    while (!ids.empty()) {
      int64_t id = 0;
      const auto [end, error] = std::from_chars(ids.data(), ids.data() + ids.size(), id);
      const auto fact = fact_of_id_.find(id);
      if (error != std::errc() || fact == fact_of_id_.end()) {
        return BadLine(number, "the question rests on \"" + std::string(ids) +
                                   "\", which is not the number of a fact before it");
      }
      question.supporting.push_back(fact->second);
      ids = Trim(ids.substr(static_cast<size_t>(end - ids.data())));
    }
    if (facts_.empty()) return BadLine(number, "no fact precedes the question");
    question.facts = facts_;
    questions_.push_back(std::move(question));
    return absl::OkStatus();
  }

  std::vector<std::string> facts_;
  std::map<int64_t, size_t> fact_of_id_;
  int64_t last_id_ = 0;
  std::vector<BabiQuestion> questions_;
};

// Parses each line of JSON lines.
template <typename Record>
absl::StatusOr<std::vector<Record>> ParseJsonLines(
    std::string_view text, absl::StatusOr<Record> (*parse)(int64_t, std::string_view)) {
  std::vector<Record> records;
  INFLLM_RETURN_IF_ERROR(VisitLines(text, [&](int64_t number, std::string_view line) {
    INFLLM_ASSIGN_OR_RETURN(Record record, parse(number, line));
    records.push_back(std::move(record));
    return absl::OkStatus();
  }));
  if (records.empty()) return absl::DataLossError("holds no record");
  return records;
}

}  // namespace

absl::StatusOr<std::string> ReadTaskFile(const std::string& path) {
  // Reads what is not gzip as it is.
  const std::unique_ptr<gzFile_s, decltype(&gzclose)> file(gzopen(path.c_str(), "rb"), &gzclose);
  if (file == nullptr) {
    return absl::NotFoundError(path + ": " + std::strerror(errno == 0 ? ENOMEM : errno));
  }
  std::string text;
  std::vector<char> buffer(size_t{1} << 16);
  for (;;) {
    const int bytes = gzread(file.get(), buffer.data(), static_cast<unsigned>(buffer.size()));
    int error = Z_OK;
    const char* const message = gzerror(file.get(), &error);
    if (bytes < 0 || error == Z_BUF_ERROR) {
      const char* const why = error == Z_ERRNO ? std::strerror(errno) : message;
      return absl::DataLossError(path + ": " + why);
    }
    if (bytes == 0) return text;
    text.append(buffer.data(), static_cast<size_t>(bytes));
    if (text.size() > kMostFileBytes) {
      return absl::DataLossError(
          absl::StrFormat("%s: holds more than %d bytes", path, kMostFileBytes));
    }
  }
}

absl::StatusOr<std::vector<LongChatRecord>> ParseLongChatLines(std::string_view text) {
  return ParseJsonLines(text, ParseLongChatLine);
}

absl::StatusOr<std::vector<KeyValueRecord>> ParseKeyValueRecords(std::string_view text) {
  return ParseJsonLines(text, ParseKeyValueLine);
}

absl::StatusOr<std::vector<BabiQuestion>> ParseBabi(std::string_view text) {
  BabiReader reader;
  INFLLM_RETURN_IF_ERROR(VisitLines(
      text, [&](int64_t number, std::string_view line) { return reader.Read(number, line); }));
  std::vector<BabiQuestion> questions = std::move(reader).Finish();
  if (questions.empty()) return absl::DataLossError("holds no question");
  return questions;
}

}  // namespace infllm::services
