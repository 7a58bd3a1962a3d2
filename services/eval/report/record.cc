#include "services/eval/report/record.h"

#include <concepts>
#include <limits>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "worker/model/json_depth.h"

namespace infllm::services {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxCount = int64_t{1} << 53;  // what every reader of JSON holds exactly
constexpr double kMaxSeconds = 1e12;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

// Calls io(name, [least, most,] field) for each field, in the order in which they are written.
// `T` is the record, const or not.
template <typename T, typename Record>
concept Is = std::same_as<std::remove_const_t<T>, Record>;

void Visit(auto& io, Is<Retrieval> auto& r) {
  io("in_window", r.in_window);
  io("layers", r.layers);
  io("best_rank", r.best_rank);
  io("kept", 0.0, 1.0, r.kept);
}

void Visit(auto& io, Is<AnswerRecord> auto& r) {
  io("config", r.config);
  io("task", r.task);
  io("length", r.length);
  io("sample", r.sample);
  io("question", 0, kMaxInt32, r.question);
  io("label", r.label);
  io("depth", -1.0, 1.0, r.depth);
  io("output", r.output);
  io("answers", r.answers);
  io("score", 0.0, 1.0, r.score);
  io("text_tokens", r.text_tokens);
  io("seconds", 0.0, kMaxSeconds, r.seconds);
  io("retrieval", r.retrieval);
  io("cache_hits", r.cache_hits);
  io("cache_misses", r.cache_misses);
  io("miss_bytes", r.miss_bytes);
}

void Visit(auto& io, Is<PerplexityRecord> auto& r) {
  io("config", r.config);
  io("text", r.text);
  io("length", r.length);
  io("begin", 0, kMaxCount - 1, r.begin);
  io("end", r.begin + 1, kMaxCount, r.end);
  io("mean_nll", r.mean_nll);
}

void Visit(auto& io, Is<IngestRecord> auto& r) {
  io("config", r.config);
  io("task", r.task);
  io("length", r.length);
  io("sample", r.sample);
  io("tokens_read", r.tokens_read);
  io("seconds", 0.0, kMaxSeconds, r.seconds);
  io("ram_bytes", r.ram_bytes);
  io("cold_bytes", r.cold_bytes);
  io("peak_rss_bytes", r.peak_rss_bytes);
}

void Visit(auto& io, Is<SkipRecord> auto& r) {
  io("config", r.config);
  io("task", r.task);
  io("length", r.length);
  io("reason", r.reason);
}

// Reads the fields of one record and keeps what is wrong with the first bad one.
class Reader {
 public:
  explicit Reader(const Json& object) : object_(object) {}

  const std::string& error() const { return error_; }

  void operator()(const char* name, std::string& out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_string()) return Refuse(name, *value, "a string");
    out = value->get<std::string>();
  }

  void operator()(const char* name, bool& out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_boolean()) return Refuse(name, *value, "true or false");
    out = value->get<bool>();
  }

  void operator()(const char* name, std::vector<std::string>& out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_array()) return Refuse(name, *value, "an array of strings");
    for (const Json& element : *value) {
      if (!element.is_string()) return Refuse(name, element, "an array of strings");
      out.push_back(element.get<std::string>());
    }
  }

  void operator()(const char* name, std::vector<int32_t>& out) {
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
  void operator()(const char* name, int64_t least, int64_t most, Integer& out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    int64_t number = 0;
    if (!Convert(*value, least, most, number)) {
      return Refuse(name, *value, absl::StrCat("a whole number from ", least, " to ", most));
    }
    out = static_cast<Integer>(number);
  }
  void operator()(const char* name, int64_t& count) { (*this)(name, 0, kMaxCount, count); }

  void operator()(const char* name, double least, double most, double& out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_number() || value->get<double>() < least || value->get<double>() > most) {
      return Refuse(name, *value, absl::StrCat("a number from ", least, " to ", most));
    }
    out = value->get<double>();
  }

  // Null is not a number.
  void operator()(const char* name, double& out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_null() && !value->is_number()) return Refuse(name, *value, "a number or null");
    out = value->is_null() ? std::numeric_limits<double>::quiet_NaN() : value->get<double>();
  }

  void operator()(const char* name, std::optional<Retrieval>& out) {
    if (!object_.contains(name)) return;
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_object()) return Refuse(name, *value, "an object");
    Reader reader(*value);
    Visit(reader, out.emplace());
    if (!reader.error().empty()) error_ = absl::StrCat("\"", name, "\": ", reader.error());
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

// The fields of one record as JSON.
class Writer {
 public:
  explicit Writer(const char* kind = nullptr) {
    if (kind != nullptr) json_["kind"] = kind;
  }
  void operator()(const char* name, const auto& value) { json_[name] = value; }
  void operator()(const char* name, auto, auto, const auto& value) { json_[name] = value; }
  void operator()(const char* name, const std::optional<Retrieval>& value) {
    if (!value.has_value()) return;
    Writer writer;
    Visit(writer, *value);
    json_[name] = writer.json_;
  }
  std::string Line() const { return Dump(json_); }

 private:
  Json json_;
};

template <typename Record>
std::string Line(const char* kind, const Record& record) {
  Writer writer(kind);
  Visit(writer, record);
  return writer.Line();
}

// What is wrong with the record, or nothing.
std::string Append(const Json& object, Records& records) {
  if (!object.is_object()) return "not a JSON object";
  Reader reader(object);
  std::string kind;
  reader("kind", kind);
  if (!reader.error().empty()) return reader.error();
  if (kind == "answer") {
    Visit(reader, records.answers.emplace_back());
  } else if (kind == "perplexity") {
    Visit(reader, records.perplexities.emplace_back());
  } else if (kind == "ingest") {
    Visit(reader, records.ingests.emplace_back());
  } else if (kind == "skip") {
    Visit(reader, records.skips.emplace_back());
  } else {
    return absl::StrCat("field \"kind\" is ", Dump(kind.substr(0, 60)),
                        ", and must be answer, perplexity, ingest or skip");
  }
  return reader.error();
}

}  // namespace

std::string ToJsonLine(const AnswerRecord& record) { return Line("answer", record); }
std::string ToJsonLine(const PerplexityRecord& record) { return Line("perplexity", record); }
std::string ToJsonLine(const IngestRecord& record) { return Line("ingest", record); }
std::string ToJsonLine(const SkipRecord& record) { return Line("skip", record); }

absl::StatusOr<Records> ParseRecords(std::string_view lines) {
  Records records;
  for (int64_t number = 1; !lines.empty(); ++number) {
    const size_t newline = lines.find('\n');
    const std::string_view line = lines.substr(0, newline);
    const bool last = newline == std::string_view::npos;
    lines.remove_prefix(last ? lines.size() : newline + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;

    if (const absl::Status depth = worker::CheckJsonDepth(line); !depth.ok()) {
      return absl::DataLossError(
          absl::StrCat("line ", number, " of the records: ", depth.message()));
    }
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
