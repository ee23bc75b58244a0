#include "base/thread_border.h"

#include <exception>
#include <string>

#include "base/log.h"

namespace lathe {

bool within_border(std::string_view name, const std::function<void()>& work) {
  try {
    work();
    return true;
  } catch (const std::exception& e) {
    log::error(std::string(name) + " failed: " + e.what());
  } catch (...) {
    log::error(std::string(name) + " failed");
  }
  return false;
}

}  // namespace lathe
