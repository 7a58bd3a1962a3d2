#include "services/eval/report/record.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace infllm::services {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxCount = int64_t{1} << 53;  // what every reader of JSON holds exactly
constexpr double kMaxSeconds = 1e12;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

// Reads the fields of one record and keeps what is wrong with the first bad one.
class Fields {
 public:
  explicit Fields(const Json& object) : object_(object) {}

  const std::string& error() const { return error_; }

  bool Has(const char* name) const { return object_.contains(name); }

  void Read(const char* name, std::string& out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_string()) return Refuse(name, *value, "a string");
    out = value->get<std::string>();
  }

  void Read(const char* name, bool& out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_boolean()) return Refuse(name, *value, "true or false");
    out = value->get<bool>();
  }

  void Read(const char* name, std::vector<std::string>& out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_array()) return Refuse(name, *value, "an array of strings");
    for (const Json& element : *value) {
      if (!element.is_string()) return Refuse(name, element, "an array of strings");
      out.push_back(element.get<std::string>());
    }
  }

  void Read(const char* name, std::vector<int32_t>& out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_array()) return Refuse(name, *value, "an array of layers");
    for (const Json& element : *value) {
      int64_t layer = 0;
      if (!Convert(element, 0, kMaxInt32, layer)) {
        return Refuse(name, element, "an array of layers, counted from 0");
      }
      out.push_back(static_cast<int32_t>(layer));
    }
  }

  template <typename Integer>
  void Read(const char* name, int64_t least, int64_t most, Integer& out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    int64_t number = 0;
    if (!Convert(*value, least, most, number)) {
      return Refuse(name, *value, absl::StrCat("a whole number from ", least, " to ", most));
    }
    out = static_cast<Integer>(number);
  }
  void ReadCount(const char* name, int64_t& out) { Read(name, 0, kMaxCount, out); }

  void Read(const char* name, double least, double most, double& out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_number() || value->get<double>() < least || value->get<double>() > most) {
      return Refuse(name, *value, absl::StrCat("a number from ", least, " to ", most));
    }
    out = value->get<double>();
  }

  void ReadOrNull(const char* name, double& out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (value->is_null()) {
      out = std::numeric_limits<double>::quiet_NaN();
    } else if (value->is_number()) {
      out = value->get<double>();
    } else {
      Refuse(name, *value, "a number or null");
    }
  }

  void Read(const char* name, Retrieval& out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_object()) return Refuse(name, *value, "an object");
    Fields fields(*value);
    fields.Read("in_window", out.in_window);
    fields.Read("layers", out.layers);
    fields.ReadCount("best_rank", out.best_rank);
    fields.Read("kept", 0.0, 1.0, out.kept);
    if (!fields.error().empty()) error_ = absl::StrCat("\"", name, "\": ", fields.error());
  }

 private:
  static bool Convert(const Json& value, int64_t least, int64_t most, int64_t& out) {
    if (!value.is_number_integer()) return false;
    if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(kMaxCount)) {
      return false;
    }
    out = value.get<int64_t>();
    return out >= least && out <= most;
  }

  // Null once a field was bad: the first error is the one to show.
  const Json* Find(const char* name) {
    if (!error_.empty()) return nullptr;
    const auto it = object_.find(name);
    if (it == object_.end()) {
      error_ = absl::StrCat("has no field \"", name, "\"");
      return nullptr;
    }
    return &*it;
  }

  void Refuse(const char* name, const Json& value, const std::string& wanted) {
    constexpr size_t kShown = 60;
    std::string shown = value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
    if (shown.size() > kShown) shown = shown.substr(0, kShown) + "...";
    error_ = absl::StrCat("field \"", name, "\" is ", shown, ", and must be ", wanted);
  }

  const Json& object_;
  std::string error_;
};

AnswerRecord ReadAnswer(Fields& fields) {
  AnswerRecord record;
  fields.Read("config", record.config);
  fields.Read("task", record.task);
  fields.ReadCount("length", record.length);
  fields.Read("sample", record.sample);
  fields.Read("question", 0, kMaxInt32, record.question);
  fields.Read("label", record.label);
  fields.Read("depth", -1.0, 1.0, record.depth);
  fields.Read("output", record.output);
  fields.Read("answers", record.answers);
  fields.Read("score", 0.0, 1.0, record.score);
  fields.ReadCount("text_tokens", record.text_tokens);
  fields.Read("seconds", 0.0, kMaxSeconds, record.seconds);
  if (fields.Has("retrieval")) fields.Read("retrieval", record.retrieval.emplace());
  fields.ReadCount("cache_hits", record.cache_hits);
  fields.ReadCount("cache_misses", record.cache_misses);
  fields.ReadCount("miss_bytes", record.miss_bytes);
  return record;
}

PerplexityRecord ReadPerplexity(Fields& fields) {
  PerplexityRecord record;
  fields.Read("config", record.config);
  fields.Read("text", record.text);
  fields.ReadCount("length", record.length);
  fields.Read("begin", 0, kMaxCount - 1, record.begin);
  fields.Read("end", record.begin + 1, kMaxCount, record.end);
  fields.ReadOrNull("mean_nll", record.mean_nll);
  return record;
}

IngestRecord ReadIngest(Fields& fields) {
  IngestRecord record;
  fields.Read("config", record.config);
  fields.Read("task", record.task);
  fields.ReadCount("length", record.length);
  fields.Read("sample", record.sample);
  fields.ReadCount("tokens_read", record.tokens_read);
  fields.Read("seconds", 0.0, kMaxSeconds, record.seconds);
  fields.ReadCount("ram_bytes", record.ram_bytes);
  fields.ReadCount("cold_bytes", record.cold_bytes);
  fields.ReadCount("peak_rss_bytes", record.peak_rss_bytes);
  return record;
}

SkipRecord ReadSkip(Fields& fields) {
  SkipRecord record;
  fields.Read("config", record.config);
  fields.Read("task", record.task);
  fields.ReadCount("length", record.length);
  fields.Read("reason", record.reason);
  return record;
}

// What is wrong with the record, or nothing.
std::string Append(const Json& object, Records& records) {
  if (!object.is_object()) return "not a JSON object";
  Fields fields(object);
  std::string kind;
  fields.Read("kind", kind);
  if (!fields.error().empty()) return fields.error();
  if (kind == "answer") {
    records.answers.push_back(ReadAnswer(fields));
  } else if (kind == "perplexity") {
    records.perplexities.push_back(ReadPerplexity(fields));
  } else if (kind == "ingest") {
    records.ingests.push_back(ReadIngest(fields));
  } else if (kind == "skip") {
    records.skips.push_back(ReadSkip(fields));
  } else {
    return absl::StrCat("field \"kind\" is ", Dump(kind.substr(0, 60)),
                        ", and must be answer, perplexity, ingest or skip");
  }
  return fields.error();
}

}  // namespace

std::string ToJsonLine(const AnswerRecord& record) {
  Json json = {
      {"kind", "answer"},          {"config", record.config}, {"task", record.task},
      {"length", record.length},   {"sample", record.sample}, {"question", record.question},
      {"label", record.label},     {"depth", record.depth},   {"output", record.output},
      {"answers", record.answers}, {"score", record.score},   {"text_tokens", record.text_tokens},
      {"seconds", record.seconds}};
  if (record.retrieval.has_value()) {
    json["retrieval"] = {{"in_window", record.retrieval->in_window},
                         {"layers", record.retrieval->layers},
                         {"best_rank", record.retrieval->best_rank},
                         {"kept", record.retrieval->kept}};
  }
  json["cache_hits"] = record.cache_hits;
  json["cache_misses"] = record.cache_misses;
  json["miss_bytes"] = record.miss_bytes;
  return Dump(json);
}

std::string ToJsonLine(const PerplexityRecord& record) {
  return Dump({{"kind", "perplexity"},
               {"config", record.config},
               {"text", record.text},
               {"length", record.length},
               {"begin", record.begin},
               {"end", record.end},
               {"mean_nll", record.mean_nll}});
}

std::string ToJsonLine(const IngestRecord& record) {
  return Dump({{"kind", "ingest"},
               {"config", record.config},
               {"task", record.task},
               {"length", record.length},
               {"sample", record.sample},
               {"tokens_read", record.tokens_read},
               {"seconds", record.seconds},
               {"ram_bytes", record.ram_bytes},
               {"cold_bytes", record.cold_bytes},
               {"peak_rss_bytes", record.peak_rss_bytes}});
}

std::string ToJsonLine(const SkipRecord& record) {
  return Dump({{"kind", "skip"},
               {"config", record.config},
               {"task", record.task},
               {"length", record.length},
               {"reason", record.reason}});
}

absl::StatusOr<Records> ParseRecords(std::string_view lines) {
  Records records;
  for (int64_t number = 1; !lines.empty(); ++number) {
    const size_t newline = lines.find('\n');
    const std::string_view line = lines.substr(0, newline);
    const bool last = newline == std::string_view::npos;
    lines.remove_prefix(last ? lines.size() : newline + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;

    std::string error;
    Json object;
    try {
      object = Json::parse(line);
    } catch (const Json::parse_error& e) {
      // Cut short: what is there is the beginning of an object, and the parser wanted more.
      if (last && line.front() == '{' && e.byte > line.size()) break;
      error = absl::StrCat("not JSON from byte ", e.byte, " on");
    } catch (const Json::exception&) {
      error = "a number is out of range";
    }
    if (error.empty()) error = Append(object, records);
    if (!error.empty()) {
      return absl::DataLossError(absl::StrCat("line ", number, " of the records: ", error));
    }
  }
  return records;
}

}  // namespace infllm::services
