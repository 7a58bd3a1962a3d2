#include "services/memstore/tenant_store.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "kernels/core/status_macros.h"

namespace infllm::services {
namespace {

using memstore::ContextId;
using memstore::ContextOptions;
using memstore::Selection;

// The base is asked about it in place of another tenant's contexts, so that it answers as it does
// about a context that there is not, whatever it answers.
const ContextId& Nobodys() {
  static const ContextId id = memstore::NewContextId();
  return id;
}

void PutBack(const ContextId& id, absl::Status& status) {
  if (status.ok()) return;
  status =
      absl::Status(status.code(),
                   absl::StrReplaceAll(status.message(),
                                       {{memstore::ToString(Nobodys()), memstore::ToString(id)}}));
}
template <typename T>
void PutBack(const ContextId& id, absl::StatusOr<T>& result) {
  if (result.ok()) return;
  absl::Status status = result.status();
  PutBack(id, status);
  result = std::move(status);
}

// As for an own one, and no word of whose.
absl::Status IsTaken(const ContextId& id) {
  return absl::AlreadyExistsError(absl::StrCat(
      "context ", memstore::ToString(id), " exists already with other options: take another id"));
}

}  // namespace

TenantStore::TenantStore(memstore::MemoryStore& base, Caller caller)
    : base_(base), caller_(std::move(caller)) {}

bool TenantStore::IsAnothers(const ContextId& id) {
  const absl::StatusOr<ContextOptions> options = base_.Describe(id);
  return options.ok() && options->tenant != caller_.tenant;
}

// Makes the call for the context, or for nobody's if it is another tenant's.
template <typename Call>
auto TenantStore::With(const ContextId& id, Call call) {
  if (!IsAnothers(id)) return call(id);
  auto result = call(Nobodys());
  PutBack(id, result);
  return result;
}

absl::Status TenantStore::Create(const ContextId& id, const ContextOptions& options) {
  ContextOptions own = options;
  own.tenant = caller_.tenant;
  const absl::Status status = base_.Create(id, own);
  return absl::IsAlreadyExists(status) && IsAnothers(id) ? IsTaken(id) : status;
}

absl::StatusOr<ContextOptions> TenantStore::Describe(const ContextId& context) {
  return With(context, [&](const ContextId& id) { return base_.Describe(id); });
}

absl::Status TenantStore::Append(const ContextId& context, int32_t layer, int64_t first_block,
                                 std::span<const std::span<const std::byte>> payloads) {
  return With(context,
              [&](const ContextId& id) { return base_.Append(id, layer, first_block, payloads); });
}

absl::Status TenantStore::Publish(const ContextId& context, int32_t layer, int64_t first_block,
                                  std::span<const float> representatives) {
  return With(context, [&](const ContextId& id) {
    return base_.Publish(id, layer, first_block, representatives);
  });
}

absl::StatusOr<std::vector<Selection>> TenantStore::Select(const memstore::SelectRequest& request) {
  std::vector<memstore::SelectQuery> queries(request.queries.begin(), request.queries.end());
  for (size_t i = 0; i < queries.size(); ++i) {
    // Most queries of a step are of one context, or of a few.
    const bool again = i > 0 && request.queries[i - 1].context == queries[i].context;
    if (again) {
      queries[i].context = queries[i - 1].context;
    } else if (IsAnothers(queries[i].context)) {
      queries[i].context = Nobodys();
    }
  }
  INFLLM_ASSIGN_OR_RETURN(
      std::vector<Selection> selections,
      base_.Select({.layer = request.layer, .scoring = request.scoring, .queries = queries}));
  for (size_t i = 0; i < std::min(queries.size(), selections.size()); ++i) {
    if (queries[i].context == Nobodys()) {
      PutBack(request.queries[i].context, selections[i].status);
    }
  }
  return selections;
}

absl::StatusOr<memstore::IndexView> TenantStore::View(const ContextId& context, int32_t layer) {
  return With(context, [&](const ContextId& id) { return base_.View(id, layer); });
}

absl::StatusOr<std::vector<memstore::BlockHandle>> TenantStore::Fetch(
    const ContextId& context, int32_t layer, std::span<const int64_t> blocks) {
  return With(context, [&](const ContextId& id) { return base_.Fetch(id, layer, blocks); });
}

absl::Status TenantStore::Fork(std::span<const memstore::ForkPart> parts, const ContextId& child) {
  std::vector<memstore::ForkPart> own(parts.begin(), parts.end());
  const auto anothers = std::ranges::find_if(
      own, [&](const memstore::ForkPart& part) { return IsAnothers(part.context); });
  if (anothers == own.end()) {
    const absl::Status status = base_.Fork(own, child);
    return absl::IsAlreadyExists(status) && IsAnothers(child) ? IsTaken(child) : status;
  }
  const ContextId id = std::exchange(anothers->context, Nobodys());
  absl::Status status = base_.Fork(own, child);
  PutBack(id, status);
  return status;
}

absl::Status TenantStore::Drop(const ContextId& context) {
  return With(context, [&](const ContextId& id) { return base_.Drop(id); });
}

absl::Status TenantStore::Commit(const memstore::CommitRequest& request) {
  return With(request.context, [&](const ContextId& id) {
    memstore::CommitRequest own = request;
    own.context = id;
    // The base would take it for a commit that is repeated.
    if (id != Nobodys() && IsAnothers(request.id)) return IsTaken(request.id);
    return base_.Commit(own);
  });
}

absl::StatusOr<memstore::CommittedContext> TenantStore::FindCommitted(std::string_view,
                                                                      std::string_view name) {
  return base_.FindCommitted(caller_.tenant, name);
}

absl::StatusOr<std::vector<memstore::CommittedContext>> TenantStore::ListCommitted(
    std::string_view) {
  return base_.ListCommitted(caller_.tenant);
}

absl::StatusOr<memstore::Prefix> TenantStore::FindPrefix(const ContextOptions& options,
                                                         int32_t exec_block,
                                                         std::span<const int32_t> tokens) {
  ContextOptions own = options;
  own.tenant = caller_.tenant;
  return base_.FindPrefix(own, exec_block, tokens);
}

absl::StatusOr<memstore::Checkpoint> TenantStore::ReadCheckpoint(const ContextId& committed) {
  return With(committed, [&](const ContextId& id) { return base_.ReadCheckpoint(id); });
}

absl::StatusOr<memstore::StoreStats> TenantStore::Stats() {
  INFLLM_ASSIGN_OR_RETURN(memstore::StoreStats stats, base_.Stats());
  if (caller_.one_of_many) stats = {.ram_capacity_bytes = stats.ram_capacity_bytes};
  return stats;
}

}  // namespace infllm::services
