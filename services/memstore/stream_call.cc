#include "services/memstore/stream_call.h"

#include <grpcpp/completion_queue.h>
#include <grpcpp/support/async_stream.h>

#include <memory>

namespace infllm::services {

grpc::Status CallStream(grpc::GenericStub& stub, const std::string& path,
                        grpc::ClientContext& context, const grpc::ByteBuffer& request,
                        absl::FunctionRef<bool(grpc::ByteBuffer& message)> take) {
  grpc::CompletionQueue queue;
  // One thing at a time is under way.
  const auto done = [&] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  context.set_initial_metadata_corked(true);  // goes out with the request
  const std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream =
      stub.PrepareCall(&context, path, &queue);
  stream->StartCall(nullptr);
  stream->WriteLast(request, grpc::WriteOptions(), nullptr);
  grpc::ByteBuffer message;
  for (bool more = done(); more;) {
    stream->Read(&message, nullptr);
    more = done();
    if (more && !take(message)) {
      context.TryCancel();
      more = false;
    }
  }
  grpc::Status status;
  stream->Finish(&status, nullptr);
  done();
  return status;
}

}  // namespace infllm::services
