// Certificates for tests, made by the openssl command.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "gtest/gtest.h"

namespace infllm::testing {

// A CA of its own in a directory: `ca.pem`.
class TestCa {
 public:
  explicit TestCa(const std::string& directory) : directory_(directory) {
    std::filesystem::create_directories(directory);
    OpenSsl("req -x509 " + NewKey("ca") + " -days 30 -subj /CN=test-ca");
  }
  std::string path(const std::string& name) const { return directory_ + "/" + name; }
  std::string ca() const { return path("ca.pem"); }

  // A certificate `name`.pem with its key `name`.key. `names` as of subjectAltName, e.g.
  // "URI:spiffe://x/y,DNS:z"; empty: none.
  void Issue(const std::string& name, const std::string& common_name, const std::string& names,
             int days = 30) const {
    OpenSsl("req -x509 -CA " + ca() + " -CAkey " + path("ca.key") + " " + NewKey(name) + " -days " +
            std::to_string(days) + " -subj \"/O=test" +
            (common_name.empty() ? "" : "/CN=" + common_name) + "\"" +
            (names.empty() ? "" : " -addext subjectAltName=" + names));
  }

 private:
  std::string NewKey(const std::string& name) const {
    return "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout " +
           path(name + ".key") + " -out " + path(name + ".pem");
  }
  static void OpenSsl(const std::string& arguments) {
    ASSERT_EQ(std::system(("openssl " + arguments + " 2>/dev/null").c_str()), 0) << arguments;
  }

  const std::string directory_;
};

}  // namespace infllm::testing
