// Bounds on what a caller may ask of a store. Each keeps one bad request from taking the process
// down, and leaves an order of magnitude above the largest models known.
#pragma once

#include <cstddef>
#include <cstdint>

namespace infllm::memstore::limits {

inline constexpr size_t kMaxTenantBytes = 256;   // stored whole in every block's header
inline constexpr size_t kMaxRecipeBytes = 1024;  // a line of options
inline constexpr size_t kMaxNameBytes = 256;     // of a committed context
// Of a commit: its tokens and its state together. 16M tokens, or the scores of a window.
inline constexpr size_t kMaxCheckpointBytes = 64 << 20;
inline constexpr int64_t kMaxPrefixTokens = kMaxCheckpointBytes / 4;  // asked for at once
inline constexpr int64_t kMaxForkParts = 256;                         // a library of documents
// Exec blocks of a committed context at which others may go on: 2 MiB of hashes.
inline constexpr int64_t kMaxReusableExecBlocks = 1 << 16;
inline constexpr int64_t kMaxContexts = 65536;        // a context without blocks is a few KB
inline constexpr int32_t kMaxLayers = 1024;           // Llama 3 405B has 126
inline constexpr int32_t kMaxHeads = 1024;            // 128 there
inline constexpr int32_t kMaxHeadDim = 1024;          // 256 in the widest families
inline constexpr int32_t kMaxBlockTokens = 8192;      // the published method uses 128
inline constexpr int32_t kMaxExecBlock = 1 << 20;     // the published method uses 512
inline constexpr size_t kMaxPayloadBytes = 64 << 20;  // 13B multi-head fp32 blocks of 512: 20 MiB
inline constexpr int32_t kMaxSelect = 65536;          // blocks of one query, or of one Fetch
inline constexpr int64_t kMaxQueries = 4096;          // of one Select
// Blocks of all queries of one Select, as far as they are published: 256 for each of the most
// queries.
inline constexpr int64_t kMaxSelectedBlocks = int64_t{1} << 20;

}  // namespace infllm::memstore::limits
