// Certificates for tests, made by the openssl command.
#pragma once

#include <openssl/pem.h>
#include <openssl/x509.h>

#include <cstdio>
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
  void Issue(const std::string& name, const std::string& common_name,
             const std::string& names) const {
    OpenSsl("req -x509 -CA " + ca() + " -CAkey " + path("ca.key") + " " + NewKey(name) +
            " -days 30 -subj \"/O=test" + (common_name.empty() ? "" : "/CN=" + common_name) + "\"" +
            (names.empty() ? "" : " -addext subjectAltName=" + names));
  }

  // The certificate ended an hour ago.
  void Expire(const std::string& name) const {
    std::FILE* file = std::fopen(path(name + ".pem").c_str(), "r");
    X509* const certificate = ::PEM_read_X509(file, nullptr, nullptr, nullptr);
    std::fclose(file);
    file = std::fopen(path("ca.key").c_str(), "r");
    EVP_PKEY* const key = ::PEM_read_PrivateKey(file, nullptr, nullptr, nullptr);
    std::fclose(file);
    ASSERT_NE(::X509_gmtime_adj(::X509_getm_notAfter(certificate), -3600), nullptr);
    ASSERT_GT(::X509_sign(certificate, key, ::EVP_sha256()), 0);
    file = std::fopen(path(name + ".pem").c_str(), "w");
    EXPECT_EQ(::PEM_write_X509(file, certificate), 1);
    std::fclose(file);
    ::EVP_PKEY_free(key);
    ::X509_free(certificate);
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
