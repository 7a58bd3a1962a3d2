// How texts are found that begin alike: hashes of their tokens, exec block by exec block.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "memstore/memory_store.h"

namespace infllm::memstore {

using PrefixHash = std::array<uint8_t, 32>;

// SHA-256, one for each whole exec block: of the hash before and the block's tokens. The first goes
// on from a hash of all that decides the blocks of a context, tenant included, each field with its
// size: so neither another tenant nor another recipe can make one that is equal.
// REQUIRES: exec_block > 0. Thread-safe.
std::vector<PrefixHash> PrefixHashes(const ContextOptions& options, int32_t exec_block,
                                     std::span<const int32_t> tokens);

}  // namespace infllm::memstore
