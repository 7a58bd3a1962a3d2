// Small pieces of text handling that the tasks share.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

namespace infllm::services {

inline std::string Concat(std::initializer_list<std::string_view> parts) {
  size_t bytes = 0;
  for (const std::string_view part : parts) bytes += part.size();
  std::string all;
  all.reserve(bytes);
  for (const std::string_view part : parts) all += part;
  return all;
}

}  // namespace infllm::services
