// What the loader makes of a plugin that is absent, broken, of another build, or without a device;
// and that a working one (a fake over host memory) is reached through every operation it has.
#include "kernels/cuda_loader.h"

#include <dlfcn.h>
#include <stdlib.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::kernels {
namespace {

using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;

constexpr Stream kMain = Backend::kMainStream;
constexpr absl::StatusCode kUnavailable = absl::StatusCode::kUnavailable;
constexpr char kFakePlugin[] = INFLLM_FAKE_CUDA_PLUGIN;

class CudaLoader : public ::testing::Test {
 protected:
  ~CudaLoader() override { ::unsetenv("INFLLM_FAKE_CUDA"); }
  static void Misbehave(const char* how) { ::setenv("INFLLM_FAKE_CUDA", how, 1); }
};

TEST_F(CudaLoader, LooksNextToTheExecutable) {
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe");
  EXPECT_EQ(CudaPluginPath(), (self.parent_path() / "libinfllm_cuda.so").string());
}

TEST_F(CudaLoader, NamesThePathOfAMissingFile) {
  const TempDir dir;
  const std::string path = dir.file("libinfllm_cuda.so");
  EXPECT_THAT(NewCudaBackend(path),
              StatusIs(kUnavailable, AllOf(HasSubstr("no plugin file at"), HasSubstr(path))));
}

TEST_F(CudaLoader, RefusesAFileThatIsNoLibrary) {
  const TempDir dir;
  const std::string path = dir.Write("libinfllm_cuda.so", "not ELF");
  EXPECT_THAT(NewCudaBackend(path),
              StatusIs(kUnavailable, AllOf(HasSubstr("cannot load"), HasSubstr(path))));
}

TEST_F(CudaLoader, RefusesALibraryThatIsNoPlugin) {
  Dl_info libc = {};
  ASSERT_NE(::dladdr(reinterpret_cast<void*>(&::setenv), &libc), 0);
  EXPECT_THAT(NewCudaBackend(libc.dli_fname),
              StatusIs(kUnavailable, HasSubstr("lacks the symbol infllm_cuda_plugin")));
}

TEST_F(CudaLoader, RefusesAPluginOfAnotherBuild) {
  Misbehave("version");
  EXPECT_THAT(NewCudaBackend(kFakePlugin),
              StatusIs(kUnavailable, HasSubstr("interface version 4, this program needs 3")));
}

TEST_F(CudaLoader, HandsOnWhyNoDeviceCanBeUsed) {
  Misbehave("no-device");
  EXPECT_THAT(NewCudaBackend(kFakePlugin), StatusIs(kUnavailable, "cuda: no device of the fake"));
}

TEST_F(CudaLoader, HandsOnFailuresOfAnOperation) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Backend> backend, NewCudaBackend(kFakePlugin));
  EXPECT_THAT(backend->Synchronize(kMain),
              StatusIs(absl::StatusCode::kInternal, "cuda: the fake broke"));
  Misbehave("out-of-memory");
  EXPECT_THAT(backend->Allocate(1),
              StatusIs(absl::StatusCode::kResourceExhausted, "cuda: the fake is full"));
  Misbehave("unknown-code");
  EXPECT_THAT(backend->Allocate(1),
              StatusIs(absl::StatusCode::kInternal, EndsWith("unknown code 77")));
}

TEST_F(CudaLoader, MovesMemoryAndRunsRmsNorm) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Backend> backend, NewCudaBackend(kFakePlugin));
  EXPECT_EQ(backend->name(), "cuda");
  EXPECT_FALSE(backend->host_accessible());
  const std::vector<float> x = {1, 2, 3, 4, 5, 6}, weight = {10, 20, 30};
  ASSERT_OK_AND_ASSIGN(const Buffer device_x, backend->Allocate(6 * sizeof(float)));
  ASSERT_OK_AND_ASSIGN(const Buffer device_weight, backend->AllocateHost(3 * sizeof(float)));
  ASSERT_OK(backend->Copy(kMain, device_x.data(), x.data(), device_x.size_bytes()));
  ASSERT_OK(backend->Copy(kMain, device_weight.data(), weight.data(), device_weight.size_bytes()));
  const RmsNormArgs args = {.x = device_x.as<float>(),
                            .weight = device_weight.as<float>(),
                            .y = device_x.as<float>(),
                            .rows = 2,
                            .width = 3,
                            .eps = 0.5f};
  ASSERT_OK(backend->RmsNorm(kMain, args));
  std::vector<float> y(6);
  ASSERT_OK(backend->Copy(kMain, y.data(), device_x.data(), device_x.size_bytes()));
  EXPECT_THAT(y, ElementsAre(11.5f, 22.5f, 33.5f, 14.5f, 25.5f, 36.5f));
  ASSERT_OK(backend->Zero(kMain, device_x.data(), 2 * sizeof(float)));
  ASSERT_OK(backend->Copy(kMain, y.data(), device_x.data(), device_x.size_bytes()));
  EXPECT_THAT(y, ElementsAre(0.0f, 0.0f, 33.5f, 14.5f, 25.5f, 36.5f));
}

TEST_F(CudaLoader, HandsOnStreamsAndEvents) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Backend> backend, NewCudaBackend(kFakePlugin));
  ASSERT_OK_AND_ASSIGN(const Stream stream, backend->NewStream());
  ASSERT_OK_AND_ASSIGN(const Event event, backend->NewEvent());
  EXPECT_EQ(stream, Stream{1});
  EXPECT_EQ(event, Event{102});
  EXPECT_OK(backend->Record(stream, event));
  EXPECT_OK(backend->Wait(kMain, event));
  EXPECT_THAT(backend->Wait(stream, event), StatusIs(absl::StatusCode::kInvalidArgument));
  const float x = 1, weight = 2;  // the fake computes on the host
  float y = 0;
  ASSERT_OK(backend->RmsNorm(stream, {.x = &x, .weight = &weight, .y = &y, .rows = 1, .width = 1}));
  EXPECT_EQ(y, 4.0f);  // 1 + 2, and 1 for the stream
}

TEST_F(CudaLoader, ChecksArgumentsBeforeThePluginSeesThem) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Backend> backend, NewCudaBackend(kFakePlugin));
  EXPECT_THAT(backend->RmsNorm(kMain, {.rows = -1, .width = 4}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rows is -1")));
  EXPECT_THAT(backend->Copy(kMain, nullptr, nullptr, 4),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("to is null")));
  EXPECT_OK(backend->Copy(kMain, nullptr, nullptr, 0));
}

TEST_F(CudaLoader, NamesAnOperationThatHasNoKernel) {
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Backend> backend, NewCudaBackend(kFakePlugin));
  EXPECT_THAT(backend->Attention(kMain, {}),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("Attention")));
  EXPECT_THAT(backend->PackWeight({}, 1, DType::kF32),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("PackWeight")));
}

}  // namespace
}  // namespace infllm::kernels
