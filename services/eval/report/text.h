// Numbers and foreign text as reports show them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace infllm::services {

// "128K" and "1M" for multiples of 1024 and of its square, else "1,000,000".
std::string FormatLength(int64_t tokens);
// Three digits below 100, else a whole number in groups of three: "3.25", "1,988".
std::string FormatNumber(double value);
// A share in percent: "98.0"; "100" has no decimals.
std::string FormatPercent(double share);
// "12.34", or "> 1e9": some perplexities are no finite number.
std::string FormatPerplexity(double mean_nll);

// At most `most` characters, the last an ellipsis if some are left out.
std::string Shorten(std::string_view text, size_t most);

// Text for an element or a quoted attribute of HTML that is XML too. What no document may hold
// (bytes that are no UTF-8, control characters) becomes U+FFFD.
std::string EscapeXml(std::string_view text);
// Text for a cell of a GitHub table, or for a line: nothing in it is taken for markup.
std::string EscapeMarkdown(std::string_view text);

}  // namespace infllm::services
