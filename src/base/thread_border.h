// The border of a thread: what its work throws is logged instead of ending the process.
//
// Threads: any. A process that serves, or shares a server's GPU memory, gives every thread's entry this border, or one
// that turns what is thrown into an Error.
#pragma once

#include <functional>
#include <string_view>

namespace lathe {

// work(); false if it threw. `name`: what the log says failed.
bool within_border(std::string_view name, const std::function<void()>& work);

}  // namespace lathe
