//! The tokenizer of `tokenizer.json`, as servers use it: no special tokens added, no truncation, no padding.

use serde_json::json;
use tokenizers::{PostProcessorWrapper, Tokenizer};

pub struct TextTokenizer {
    inner: Tokenizer,
}

impl TextTokenizer {
    pub fn new(json: &[u8]) -> Result<Self, String> {
        let mut inner = Tokenizer::from_bytes(json).map_err(|e| format!("not a usable tokenizer.json: {e}"))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        // Post-processors add special tokens, which is the template's business here, and may cut white space off the offsets:
        // a token of white space would lie nowhere in the text.
        inner.with_post_processor(None::<PostProcessorWrapper>);
        Ok(TextTokenizer { inner })
    }

    /// Ids, and begin and end byte of each token in the text, alternating.
    pub fn encode(&self, text: &str) -> Result<(Vec<u32>, Vec<u64>), String> {
        let encoding = self.inner.encode(text, false).map_err(|e| e.to_string())?;
        let spans = encoding.get_offsets().iter().flat_map(|&(begin, end)| [begin as u64, end as u64]).collect();
        Ok((encoding.get_ids().to_vec(), spans))
    }

    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, String> {
        self.inner.decode(ids, skip_special).map_err(|e| e.to_string())
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    pub fn describe(&self) -> String {
        let mut added: Vec<_> = self.inner.get_added_tokens_decoder().into_iter().collect();
        added.sort_by_key(|(id, _)| *id);
        let added: Vec<_> =
            added.into_iter().map(|(id, token)| json!({"id": id, "text": token.content, "special": token.special})).collect();
        json!({"size": self.inner.get_vocab_size(true), "added": added}).to_string()
    }
}
