// The commands of `lathe`. Each adds its options to `app` and returns what to run once they are parsed; the result is
// the exit code: 0 done, 1 failed (after one clear line on standard error), 2 wrong usage.
//
// They are in two programs. LibTorch takes a quarter of a second of a processor to load, so `lathe` is not linked to
// it; those marked with torch hand over to lathe-torch next to it (torch_commands.cpp), which has them all.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace lathe::cli {

// What a command does once its options are parsed; the exit code.
using Action = std::function<int()>;

Action add_serve(CLI::App& app);   // torch
Action add_attach(CLI::App& app);  // torch
Action add_chat(CLI::App& app);
Action add_learn(CLI::App& app);
Action add_train(CLI::App& app);  // torch
Action add_sync(CLI::App& app);
Action add_log(CLI::App& app);
Action add_inspect(CLI::App& app);  // torch
Action add_verify(CLI::App& app);
Action add_rollback(CLI::App& app);
Action add_convert(CLI::App& app);
Action add_export(CLI::App& app);
Action add_publish(CLI::App& app);
Action add_push(CLI::App& app);
Action add_receive(CLI::App& app);
Action add_prune(CLI::App& app);
Action add_doctor(CLI::App& app);  // torch
Action add_bench(CLI::App& app);   // torch
Action add_config(CLI::App& app);

}  // namespace lathe::cli
