//! Tokenizer and chat template behind the C ABI of `text_shim.h`.
//!
//! Every entry point converts its raw arguments, runs one safe function inside `catch_unwind`, and hands the result or a
//! message back. The safe halves live in `tokenizer` and `template`.

#![allow(clippy::missing_safety_doc)] // text_shim.h says what the pointers must be

mod hash;
mod methods;
mod python;
mod template;
mod tokenizer;

use std::panic::{catch_unwind, AssertUnwindSafe};

use template::ChatTemplate;
use tokenizer::TextTokenizer;

/// Memory that the caller owns until `lathe_text_release`.
#[repr(C)]
pub struct Buffer {
    data: *mut u8,
    size: usize,
    capacity: usize,
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        let mut bytes = std::mem::ManuallyDrop::new(bytes);
        Buffer { data: bytes.as_mut_ptr(), size: bytes.len(), capacity: bytes.capacity() }
    }
}

type Outcome<T> = Result<T, String>;

/// Runs `work`; a failure or a panic becomes -1 and a message.
fn guarded(error: *mut Buffer, work: impl FnOnce() -> Outcome<()>) -> i32 {
    let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
        Err(format!("internal error in the text library: {}", text.unwrap_or_default()))
    });
    match outcome {
        Ok(()) => 0,
        Err(message) => {
            // SAFETY: the header asks for a valid pointer.
            unsafe { *error = message.into_bytes().into() };
            -1
        }
    }
}

/// # Safety
/// `data` points to `size` readable bytes, or `size` is 0.
unsafe fn slice<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if size == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(data, size)
    }
}

unsafe fn text<'a>(data: *const u8, size: usize) -> Outcome<&'a str> {
    std::str::from_utf8(slice(data, size)).map_err(|e| format!("the text is not valid UTF-8: {e}"))
}

fn bytes_of<T: Copy, const N: usize>(values: &[T], to_bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&v| to_bytes(v)).collect()
}

#[no_mangle]
pub unsafe extern "C" fn lathe_text_release(buffer: Buffer) {
    if !buffer.data.is_null() {
        drop(Vec::from_raw_parts(buffer.data, buffer.size, buffer.capacity));
    }
}

#[no_mangle]
pub unsafe extern "C" fn lathe_tokenizer_create(
    json: *const u8,
    size: usize,
    out: *mut *mut TextTokenizer,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        let tokenizer = TextTokenizer::new(slice(json, size))?;
        *out = Box::into_raw(Box::new(tokenizer));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lathe_tokenizer_release(tokenizer: *mut TextTokenizer) {
    if !tokenizer.is_null() {
        drop(Box::from_raw(tokenizer));
    }
}

#[no_mangle]
pub unsafe extern "C" fn lathe_tokenizer_encode(
    tokenizer: *const TextTokenizer,
    data: *const u8,
    size: usize,
    ids: *mut Buffer,
    spans: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        let (tokens, offsets) = (*tokenizer).encode(text(data, size)?)?;
        *ids = bytes_of(&tokens, u32::to_ne_bytes).into();
        *spans = bytes_of(&offsets, u64::to_ne_bytes).into();
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lathe_tokenizer_decode(
    tokenizer: *const TextTokenizer,
    ids: *const u32,
    count: usize,
    skip_special: i32,
    out: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        *out = (*tokenizer).decode(slice(ids, count), skip_special != 0)?.into_bytes().into();
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lathe_tokenizer_describe(tokenizer: *const TextTokenizer, json: *mut Buffer, error: *mut Buffer) -> i32 {
    guarded(error, || {
        *json = (*tokenizer).describe().into_bytes().into();
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lathe_tokenizer_token_to_id(
    tokenizer: *const TextTokenizer,
    token: *const u8,
    size: usize,
    id: *mut i64,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        *id = (*tokenizer).token_to_id(text(token, size)?).map_or(-1, i64::from);
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lathe_tokenizer_id_to_token(
    tokenizer: *const TextTokenizer,
    id: u32,
    token: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        let found = (*tokenizer).id_to_token(id).ok_or_else(|| format!("there is no token {id}"))?;
        *token = found.into_bytes().into();
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lathe_template_create(
    source: *const u8,
    size: usize,
    out: *mut *mut ChatTemplate,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        let template = ChatTemplate::new(text(source, size)?)?;
        *out = Box::into_raw(Box::new(template));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lathe_template_release(template: *mut ChatTemplate) {
    if !template.is_null() {
        drop(Box::from_raw(template));
    }
}

#[no_mangle]
pub unsafe extern "C" fn lathe_template_render(
    template: *const ChatTemplate,
    context: *const u8,
    size: usize,
    mark_generation: i32,
    out: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        *out = (*template).render(text(context, size)?, mark_generation != 0)?.into_bytes().into();
        Ok(())
    })
}
