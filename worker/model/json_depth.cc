#include "worker/model/json_depth.h"

#include <cstddef>

#include "absl/strings/str_cat.h"

namespace infllm::worker {

absl::Status CheckJsonDepth(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;  // what follows is no end of the string
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxJsonDepth) {
        return absl::InvalidArgumentError(absl::StrCat("the JSON is nested deeper than ",
                                                       kMaxJsonDepth, " levels at byte ", i,
                                                       ", which such a file never is"));
      }
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return absl::OkStatus();
}

}  // namespace infllm::worker
