#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "kernels/backend.h"
#include "kernels/core/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/interrupt.h"
#include "services/cli/output.h"
#include "services/common/byte_size.h"
#include "services/common/progress.h"
#include "services/common/store_factory.h"
#include "services/runtime/flags.h"

namespace infllm::services {
namespace {

using Json = nlohmann::ordered_json;
using memstore::CommittedContext;
using memstore::MemoryStore;

struct ContextsFlags {
  std::string memstore, data_dir, name, to;
  ClientSecurity security;
  bool json = false;
};

std::string Created(const CommittedContext& context) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromUnixMillis(context.created_ms),
                          absl::UTCTimeZone());
}

Json ToJson(const CommittedContext& context) {
  const memstore::Geometry& geometry = context.options.geometry;
  return {
      {"name", context.name},
      {"id", memstore::ToString(context.id)},
      {"tokens", context.tokens},
      {"reusable_tokens", context.reusable.tokens},
      {"exec_block", context.reusable.exec_block},
      {"blocks_per_layer", context.blocks},
      {"stored_bytes", context.stored_bytes},
      {"created", Created(context)},
      {"base",
       context.base == memstore::ContextId{} ? Json() : Json(memstore::ToString(context.base))},
      {"model", absl::StrFormat("%016x%016x", context.options.model.hi, context.options.model.lo)},
      {"recipe", context.options.recipe},
      {"layers", geometry.layers},
      {"kv_heads", geometry.kv_heads},
      {"head_dim", geometry.head_dim},
      {"dtype", kernels::Name(geometry.dtype)}};
}

absl::Status PrintJson(const Json& json) {
  return StreamOut(json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

absl::Status List(MemoryStore& store, const ContextsFlags& flags) {
  INFLLM_ASSIGN_OR_RETURN(const std::vector<CommittedContext> all, store.ListCommitted(""));
  if (flags.json) {
    Json list = Json::array();
    for (const CommittedContext& context : all) list.push_back(ToJson(context));
    return PrintJson(list);
  }
  if (all.empty()) return StreamOut("no context is committed\n");
  std::string out =
      absl::StrFormat("%14s %12s  %-20s  %s\n", "TOKENS", "STORED", "CREATED", "NAME");
  for (const CommittedContext& context : all) {
    absl::StrAppendFormat(&out, "%14s %12s  %-20s  %s\n", WithThousands(context.tokens),
                          FormatByteSize(context.stored_bytes), Created(context), context.name);
  }
  return StreamOut(out);
}

absl::Status Show(MemoryStore& store, const ContextsFlags& flags) {
  INFLLM_ASSIGN_OR_RETURN(const CommittedContext context, store.FindCommitted("", flags.name));
  const Json json = ToJson(context);
  if (flags.json) return PrintJson(json);
  std::string out;
  for (const auto& [key, value] : json.items()) {
    absl::StrAppendFormat(&out, "%-17s %s\n", key,
                          value.is_string() ? value.get<std::string>()
                          : value.is_null() ? std::string("none")
                                            : value.dump());
  }
  return StreamOut(out);
}

absl::Status Fork(MemoryStore& store, const ContextsFlags& flags) {
  INFLLM_ASSIGN_OR_RETURN(const CommittedContext from, store.FindCommitted("", flags.name));
  INFLLM_ASSIGN_OR_RETURN(const memstore::Checkpoint checkpoint, store.ReadCheckpoint(from.id));
  const memstore::ContextId id = memstore::NewContextId();
  INFLLM_RETURN_IF_ERROR(store.Commit({.context = from.id,
                                       .id = id,
                                       .name = flags.to,
                                       .blocks = from.blocks,
                                       .reusable = from.reusable,
                                       .tokens = checkpoint.tokens,
                                       .state = checkpoint.state}));
  return StreamOut(absl::StrCat("\"", flags.to, "\" goes on from \"", from.name, "\"\n"));
}

absl::Status Delete(MemoryStore& store, const ContextsFlags& flags) {
  INFLLM_ASSIGN_OR_RETURN(const CommittedContext context, store.FindCommitted("", flags.name));
  INFLLM_RETURN_IF_ERROR(store.Drop(context.id));
  return StreamOut(absl::StrCat("deleted \"", context.name, "\" (", WithThousands(context.tokens),
                                " tokens)\n"));
}

using Action = absl::Status (*)(MemoryStore&, const ContextsFlags&);

absl::Status RunContexts(const ContextsFlags& flags, Action action) {
  if (flags.memstore.empty() == flags.data_dir.empty()) {
    return absl::InvalidArgumentError(
        "contexts are kept by a memory store: give its --memstore ADDRESS, or its --data-dir DIR "
        "if no daemon has that open");
  }
  if (std::error_code error;
      !flags.data_dir.empty() && !std::filesystem::is_directory(flags.data_dir, error)) {
    return absl::NotFoundError(absl::StrCat("there is no memory store in ", flags.data_dir));
  }
  const Interrupt interrupt;
  kernels::ThreadPool pool(1);
  const std::unique_ptr<kernels::Backend> backend = kernels::NewCpuBackend(pool);
  INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<MemoryStore> store,
                          OpenStore({.memstore_target = flags.memstore,
                                     .security = flags.security,
                                     .cancel = interrupt.flag(),
                                     .data_dir = flags.data_dir},
                                    *backend));
  return action(*store, flags);
}

}  // namespace

Command AddContextsCommand(CLI::App& app) {
  auto flags = std::make_shared<ContextsFlags>();
  auto chosen = std::make_shared<Action>(nullptr);
  app.require_subcommand(1);
  const auto add = [&](const char* name, const char* help, Action action) {
    CLI::App* const command = app.add_subcommand(name, help);
    command->add_option("--memstore", flags->memstore,
                        "memory store daemon, host:port or unix:path");
    AddSecurityFlags(*command, flags->security);
    command->add_option("--data-dir", flags->data_dir,
                        "directory of a store that no daemon serves");
    command->callback([chosen, action] { *chosen = action; });
    return command;
  };
  add("list", "what is committed", &List)->add_flag("--json", flags->json, "print JSON");
  CLI::App* const show = add("show", "what is known of one", &Show);
  show->add_flag("--json", flags->json, "print JSON");
  CLI::App* const fork =
      add("fork", "another name for the same, which then goes on by itself", &Fork);
  CLI::App* const remove =
      add("delete", "forget one for good; those that share with it keep all", &Delete);
  for (CLI::App* command : {show, fork, remove}) {
    command->add_option("NAME", flags->name, "the context's")->required();
  }
  fork->add_option("NEW", flags->to, "name of the fork")->required();
  return [flags, chosen] { return RunContexts(*flags, *chosen); };
}

}  // namespace infllm::services
