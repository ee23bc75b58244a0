// Identifiers of answers and lessons.
//
// Threads: any.
#pragma once

#include <string>

namespace lathe::daemon {

// `prefix` and twenty random letters and digits: no two are alike.
std::string random_id(const char* prefix);

}  // namespace lathe::daemon
