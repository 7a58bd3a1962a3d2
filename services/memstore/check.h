#pragma once

#include <string>

namespace infllm::services {

// `infllm-memstore --check`: reads all that is committed in a directory that no daemon uses now,
// and changes nothing. What is damaged goes to stdout, a line each, then a summary; progress to
// stderr. The exit status: 0 all is whole, 1 there is damage, 2 it cannot be checked, for a reason
// on stderr.
int CheckDataDir(const std::string& data_dir);

}  // namespace infllm::services
