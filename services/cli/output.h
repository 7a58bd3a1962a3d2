// What a command tells on stdout, and whether it got there.
#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace infllm::services {

// To be called before anything is opened. A file descriptor from 0 to 2 that the caller has closed
// would be taken by the next file, and output would be written into it: fills the gaps. And makes a
// reader that goes away (`| head -1`) an error of the write, not the end of the process.
void PrepareStandardStreams();

// Writes `text` to stdout, where it is seen at once, after what is buffered there.
//   UNAVAILABLE  it cannot be written; there is no point in going on
//   CANCELLED    a signal came while the reader let us wait
absl::Status StreamOut(std::string_view text);

// Writes what is buffered for stdout. Errors as above, also of all earlier output.
absl::Status FlushOutput();

}  // namespace infllm::services
