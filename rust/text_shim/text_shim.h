/* C ABI of the tokenizer and chat-template shim (Rust crates tokenizers and minijinja).
 *
 * Every function returns 0 on success and -1 on failure; on failure *error holds a UTF-8 message.
 * Every buffer a function fills is owned by the caller and given back with lathe_text_release. No
 * panic crosses this boundary. Handles are immutable after creation and may be used from any
 * thread; release each once. Strings are UTF-8, not NUL-terminated. */
#ifndef LATHE_TEXT_SHIM_H
#define LATHE_TEXT_SHIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lathe_text_buffer {
  uint8_t* data;
  size_t size; /* bytes */
  size_t capacity;
} lathe_text_buffer;

typedef struct lathe_tokenizer lathe_tokenizer;
typedef struct lathe_template lathe_template;

void lathe_text_release(lathe_text_buffer buffer);

/* json: contents of tokenizer.json. Truncation and padding that the file may ask for are switched
 * off. */
int32_t lathe_tokenizer_create(const uint8_t* json, size_t size, lathe_tokenizer** out, lathe_text_buffer* error);
void lathe_tokenizer_release(lathe_tokenizer* tokenizer);

/* ids: uint32_t each. spans: two uint64_t (begin, end in bytes of text) each. No special tokens are
 * added. */
int32_t lathe_tokenizer_encode(const lathe_tokenizer* tokenizer, const uint8_t* text, size_t size,
                               lathe_text_buffer* ids, lathe_text_buffer* spans, lathe_text_buffer* error);
int32_t lathe_tokenizer_decode(const lathe_tokenizer* tokenizer, const uint32_t* ids, size_t count,
                               int32_t skip_special, lathe_text_buffer* text, lathe_text_buffer* error);
/* The vocabulary with added tokens as a JSON object: {"size": n, "added": [{"id", "text",
 * "special"}]}. */
int32_t lathe_tokenizer_describe(const lathe_tokenizer* tokenizer, lathe_text_buffer* json, lathe_text_buffer* error);
/* *id is -1 if the vocabulary has no such token. */
int32_t lathe_tokenizer_token_to_id(const lathe_tokenizer* tokenizer, const uint8_t* token, size_t size, int64_t* id,
                                    lathe_text_buffer* error);
int32_t lathe_tokenizer_id_to_token(const lathe_tokenizer* tokenizer, uint32_t id, lathe_text_buffer* token,
                                    lathe_text_buffer* error);

/* source: a chat template; rendered as transformers renders it (trimmed blocks, Python methods,
 * tojson, raise_exception, strftime_now). context: a JSON object of variables. */
int32_t lathe_template_create(const uint8_t* source, size_t size, lathe_template** out, lathe_text_buffer* error);
void lathe_template_release(lathe_template* chat_template);
/* mark_generation: put U+FDD3 and U+FDD4 around what the template has in {% generation %} blocks.
 */
int32_t lathe_template_render(const lathe_template* chat_template, const uint8_t* context, size_t size,
                              int32_t mark_generation, lathe_text_buffer* text, lathe_text_buffer* error);

#ifdef __cplusplus
}
#endif

#endif /* LATHE_TEXT_SHIM_H */
