// Attach: teaching a model that a running vLLM serves, in vLLM's own memory.
//
// The routes of teaching of `lathe serve` over weights that another process serves. Before anything is written, every
// byte of the live weights is compared with the checkpoint on disk, and the chat template's tokens with the server's.
// Threads: as `lathe serve`, without a serving thread (docs/threads.md); one more watches for the end of vLLM.
// Protocol page: docs/protocols/vllm.md. Page for users: docs/vllm.md
#pragma once

#include <functional>
#include <string>

#include "base/result.h"
#include "config/settings.h"
#include "io/env.h"
#include "model/model.h"
#include "text/text.h"
#include "vllm/server.h"
#include "vllm/session.h"

namespace lathe::daemon {

// What to do if the live weights are not the directory's: a trainer that ended without a sync left them so.
enum class OnDifference { kRefuse, kRestore, kAdopt };

// Whose tokens are taught: those of the directory's tokenizer and chat template, or those of vLLM's /tokenize.
enum class Tokens { kOurs, kServer };

struct AttachOptions {
  vllm::Server server;    // url may be empty if `socket` is given; then tokens are not compared
  std::string socket;     // of the plugin; empty: the server says
  std::string directory;  // empty: vLLM's
  OnDifference on_difference = OnDifference::kRefuse;
  Tokens tokens = Tokens::kOurs;
  bool proxy = false;  // pass vLLM's inference routes through; vllm/proxy.h
  bool live = false;   // write while requests run, pausing them briefly after the write
};

// vLLM's weights as a model that can be taught, over vLLM's memory.
struct Imported {
  std::string directory;
  model::LoadedModel loaded;
};

// Checks, maps, changes nothing. Refuses by name whatever Lathe does not understand; the engine's own refusals are
// vllm::check_refusals(). `directory`: empty, or what must be vLLM's.
Result<Imported> import_manifest(io::Env& env, const std::string& directory, const vllm::Manifest& manifest);

// Names of tensors whose live bytes are not those on disk.
Result<std::vector<std::string>> differing(io::Env& env, const Imported& imported);

// Whether the server cuts a conversation into the tokens that `text`, the directory's, gives. kConflict if not.
Status compare_tokens(const text::Text& text, const vllm::Server& server);

// Teaches until a signal, or until vLLM is gone (an error, after what was learned has been made durable). `ready` is
// called with the port once requests are answered.
Status attach(const AttachOptions& options, config::Settings settings, const std::function<void(int port)>& ready);

}  // namespace lathe::daemon
