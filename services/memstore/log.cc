#include "services/memstore/log.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace infllm::services {
namespace {

constexpr double kBurstOfKind = 5;
constexpr absl::Duration kIntervalOfKind = absl::Seconds(10);

const char* ToString(LogLevel level) {
  switch (level) {
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "";
}

// Bytes of the UTF-8 character that `text` begins with; 0 if it begins with none.
size_t Utf8Length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const size_t length = byte(0) < 0x80            ? 1
                        : byte(0) >> 5 == 0b110   ? 2
                        : byte(0) >> 4 == 0b1110  ? 3
                        : byte(0) >> 3 == 0b11110 ? 4
                                                  : 0;
  if (length == 0 || length > text.size()) return 0;
  uint32_t code = length == 1 ? byte(0) : byte(0) & (0xffu >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if (byte(i) >> 6 != 0b10) return 0;
    code = code << 6 | (byte(i) & 0x3fu);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xd800 && code < 0xe000;
  return code < kLeast[length] || surrogate || code > 0x10ffff ? 0 : length;
}

// As a JSON string, which is what the text format quotes with, too.
void AppendQuoted(std::string& line, std::string_view value) {
  const bool cut = value.size() > Log::kMaxValueBytes;
  value = value.substr(0, Log::kMaxValueBytes);
  line += '"';
  while (!value.empty()) {
    const size_t length = Utf8Length(value);
    const auto first = static_cast<unsigned char>(value[0]);
    // 0x80 to 0x9f, two bytes in UTF-8, are control characters, too.
    const bool control =
        first < 0x20 || first == 0x7f ||
        (length == 2 && first == 0xc2 && static_cast<unsigned char>(value[1]) < 0xa0);
    if (first == '"' || first == '\\') {
      line += '\\';
      line += value[0];
    } else if (length == 0 || control) {
      const auto code = length == 2 ? static_cast<unsigned char>(value[1]) : first;
      absl::StrAppend(&line, "\\u", absl::Hex(code, absl::kZeroPad4));
    } else {
      line += value.substr(0, length);
    }
    value.remove_prefix(std::max<size_t>(length, 1));
  }
  line += cut ? "...\"" : "\"";
}

void AppendValue(std::string& line, const Log::Value& value) {
  if (const auto* text = std::get_if<std::string_view>(&value)) {
    AppendQuoted(line, *text);
  } else if (const auto* number = std::get_if<double>(&value)) {
    absl::StrAppend(&line, std::isfinite(*number) ? *number : 0.0);  // JSON knows no others
  } else {
    absl::StrAppend(&line, std::get<int64_t>(value));
  }
}

}  // namespace

bool LineBudget::Take(absl::Time now) {
  left_ = std::min(burst_, left_ + std::max(0.0, absl::FDivDuration(now - filled_, interval_)));
  filled_ = now;
  if (left_ < 1) return false;
  left_ -= 1;
  return true;
}

void Log::Write(LogLevel level, std::string_view event, Fields fields) {
  const std::lock_guard lock(mutex_);
  WriteLine(level, event, fields, 0);
}

void Log::WriteLimited(LogLevel level, std::string_view event, std::string_view kind, Fields fields,
                       absl::Time now) {
  if (level < level_) return;
  const std::lock_guard lock(mutex_);
  Kind& of_kind =
      kinds_
          .try_emplace(std::string(kind), Kind{.budget = LineBudget(kBurstOfKind, kIntervalOfKind)})
          .first->second;
  if (!of_kind.budget.Take(now) || !all_.Take(now)) {
    ++of_kind.suppressed;
    return;
  }
  WriteLine(level, event, fields, std::exchange(of_kind.suppressed, 0));
}

void Log::WriteLine(LogLevel level, std::string_view event, Fields fields, int64_t suppressed) {
  if (level < level_) return;
  const std::string time =
      absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone());
  const absl::string_view event_text(event.data(), event.size());
  const bool json = format_ == LogFormat::kJson;
  std::string line = json ? absl::StrCat("{\"time\":\"", time, "\",\"level\":\"", ToString(level),
                                         "\",\"event\":\"", event_text, "\"")
                          : absl::StrCat(time, " ", ToString(level), " ", event_text);
  const auto append = [&](std::string_view name, const Value& value) {
    const absl::string_view text(name.data(), name.size());
    absl::StrAppend(&line, json ? ",\"" : " ", text, json ? "\":" : "=");
    AppendValue(line, value);
  };
  for (const auto& [name, value] : fields) append(name, value);
  if (suppressed > 0) append("suppressed", suppressed);
  line += json ? "}\n" : "\n";
  // In one piece, so that lines of others on the same file stay whole.
  std::fwrite(line.data(), 1, line.size(), file_);
  std::fflush(file_);
}

}  // namespace infllm::services
