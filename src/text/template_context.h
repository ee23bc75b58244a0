// What a chat template is given: the conversation as JSON, prepared as servers prepare it. Private
// to src/text.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

#include "base/result.h"
#include "text/chat_template.h"

namespace lathe::text {

using Json = nlohmann::ordered_json;  // templates print mappings in the order they came

// Where templates disagree about messages. None says what it expects, so the first preparation that
// renders is taken.
struct Preparation {
  bool parse_arguments = true;  // tool-call arguments sent as a string of JSON become a mapping
  bool null_content = true;     // content that is null stays so, else it becomes ""
};

// The JSON object or array in `text`; `name` is for the message.
Result<Json> parse_json(const std::string& text, const char* name, bool want_array);

// `parts`: the template takes content in parts; else text parts are joined by line ends.
Result<Json> template_context(std::span<const Message> messages, const RenderOptions& options,
                              const std::string& variables_json, bool parts, const Preparation& preparation);

}  // namespace lathe::text
