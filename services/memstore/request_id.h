// The names by which a failed call is found in the log of the daemon.
#pragma once

#include <string>
#include <string_view>

namespace infllm::services {

// Metadata of a call; what others use for it, too.
inline constexpr char kRequestIdKey[] = "x-request-id";

// 16 random hex digits. Thread-safe.
std::string NewRequestId();

// `given` by a client, made safe to print: at most 64 characters, each a letter, a digit or one of
// "-_.:/"; others become '_'. Empty if it is.
std::string CleanRequestId(std::string_view given);

}  // namespace infllm::services
