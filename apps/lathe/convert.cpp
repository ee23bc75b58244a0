#include "history/convert.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "commands.h"
#include "delta/paths.h"
#include "progress_bar.h"
#include "report.h"
#include "value_checks.h"

namespace lathe::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string directory, target, dtype = "bf16";
  bool json = false;
};

Result<Json> convert(const Options& options) {
  io::Env& env = io::posix_env();
  const auto lock = LATHE_TRY(delta::lock_history_to_read(env, options.directory));
  ProgressBar bar;
  const history::ConvertReport done = LATHE_TRY(history::convert(
      env, options.directory, options.target,
      {.dtype = options.dtype == "f32" ? delta::Dtype::kF32 : delta::Dtype::kBF16, .progress = bar.callback()}));
  return Json{
      {"directory", options.target}, {"tensors", done.tensors}, {"converted", done.converted}, {"bytes", done.bytes}};
}

}  // namespace

Action add_convert(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  app.add_option("MODEL_DIR", options->directory, "A model directory in F16, F64 or several types; it stays as it is")
      ->required();
  app.add_option("NEW_DIR", options->target, "The directory to make: complete, all numbers in one type")->required();
  app.add_option("--dtype", options->dtype, "That type: bf16, or f32")
      ->check(one_of({"bf16", "f32"}))
      ->capture_default_str();
  app.add_flag("--json", options->json, "Print the result as JSON");
  return [options] {
    return report(
        "convert", options->json, [&] { return convert(*options); },
        [&](const Json& result) {
          std::printf("%s holds %s in %s; %ld of %ld tensors had another type\n", options->target.c_str(),
                      mebibytes(result.value("bytes", uint64_t{0})).c_str(), options->dtype.c_str(),
                      static_cast<long>(result.value("converted", int64_t{0})),
                      static_cast<long>(result.value("tensors", int64_t{0})));
        });
  };
}

}  // namespace lathe::cli
