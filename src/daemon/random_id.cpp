#include "daemon/random_id.h"

#include <random>

namespace lathe::daemon {

std::string random_id(const char* prefix) {
  thread_local std::mt19937_64 random{std::random_device{}()};
  static constexpr char kDigits[] = "0123456789abcdefghijklmnopqrstuvwxyz";
  std::string id = prefix;
  for (int i = 0; i < 20; ++i) id += kDigits[random() % 36];
  return id;
}

}  // namespace lathe::daemon
