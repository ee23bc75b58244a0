// What a path is that is no model directory with safetensors, in the words of whoever made it, and the command that
// makes one of it.
//
// Threads: pure functions.
#pragma once

#include <string>

#include "base/result.h"
#include "io/env.h"

namespace lathe::delta {

// check_model_directory() (paths.h), and that there is a config.json: what is needed to serve it. Looks at names and at
// the first bytes of a file; what is in the files is ModelDir's to check.
Status check_model_files(io::Env& env, const std::string& directory);

// The error of a path that is a file.
Error is_a_file(io::Env& env, const std::string& path);

// The error of a directory without model.safetensors and without an index.
Error no_safetensors(io::Env& env, const std::string& directory);

// The error of a directory without tokenizer.json.
Error no_tokenizer(io::Env& env, const std::string& directory);

}  // namespace lathe::delta
