// What a vLLM server says over HTTP: where its plugin's socket is, and how it cuts text into tokens.
//
// Threads: pure functions. Blocking.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "text/chat_template.h"

namespace lathe::vllm {

struct Server {
  std::string url;      // http://host:port
  std::string api_key;  // empty: none

  // The path of the plugin's socket. An error names what is missing: the server, or the plugin in it.
  Result<std::string> socket_path() const;

  // The tokens of a conversation, as the server would feed them to the model. An error is the server's own.
  Result<std::vector<text::TokenId>> tokenize(std::span<const text::Message> messages,
                                              const text::RenderOptions& options) const;
};

}  // namespace lathe::vllm
