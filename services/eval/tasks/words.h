// Words to name things by, as RULER does: an adjective, a hyphen and a noun.
#pragma once

#include <span>
#include <string_view>

namespace infllm::services {

std::span<const std::string_view> Adjectives();
std::span<const std::string_view> Nouns();

}  // namespace infllm::services
