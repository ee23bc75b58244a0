/* C ABI of BLAKE3-256 (Rust crate blake3), in the same archive as the text shim: two Rust archives
 * in one program would each bring Rust's standard library. Nothing here fails or panics. A hasher
 * belongs to one thread at a time. */
#ifndef LATHE_HASH_SHIM_H
#define LATHE_HASH_SHIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lathe_blake3 lathe_blake3;

lathe_blake3* lathe_blake3_create(void);
void lathe_blake3_release(lathe_blake3* hasher);
void lathe_blake3_update(lathe_blake3* hasher, const uint8_t* data, size_t size);
/* Does not end the hasher: more may follow. */
void lathe_blake3_finish(const lathe_blake3* hasher, uint8_t digest[32]);

#ifdef __cplusplus
}
#endif

#endif
