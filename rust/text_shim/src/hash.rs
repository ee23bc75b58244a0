//! BLAKE3 behind the C ABI of `hash_shim.h`.

use blake3::Hasher;

use crate::slice;

#[no_mangle]
pub extern "C" fn lathe_blake3_create() -> *mut Hasher {
    Box::into_raw(Box::new(Hasher::new()))
}

/// # Safety
/// As `hash_shim.h` says.
#[no_mangle]
pub unsafe extern "C" fn lathe_blake3_release(hasher: *mut Hasher) {
    if !hasher.is_null() {
        drop(Box::from_raw(hasher));
    }
}

/// # Safety
/// As `hash_shim.h` says.
#[no_mangle]
pub unsafe extern "C" fn lathe_blake3_update(hasher: *mut Hasher, data: *const u8, size: usize) {
    (*hasher).update(slice(data, size));
}

/// # Safety
/// As `hash_shim.h` says.
#[no_mangle]
pub unsafe extern "C" fn lathe_blake3_finish(hasher: *const Hasher, digest: *mut [u8; 32]) {
    *digest = *(*hasher).finalize().as_bytes();
}
