// Tables and pictures of an evaluation.
#pragma once

#include <string>

#include "services/eval/report/record.h"

namespace infllm::services {

// Per task: accuracy by configuration and length, retrieval recall, time and memory, what could not
// be run and why; perplexity by position. GitHub Markdown.
std::string MarkdownReport(const Records& records, const std::string& title);
// The same as one self-contained page: heatmaps (lengths x depths, per configuration), perplexity
// curves. No script, no request to anywhere.
std::string HtmlReport(const Records& records, const std::string& title);
// Aggregates for programs, JSON.
std::string JsonReport(const Records& records, const std::string& title);

}  // namespace infllm::services
