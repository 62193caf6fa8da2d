//! CloudEvents in the headers of a broker's messages (binary mode), and the trace context of the W3C beside them.
//! In: headers by name; a message. Out: the meaning of each header; the headers for a message.
//!
//! Each protocol has a prefix for the attributes: `ce_` on Kafka, `cloudEvents_` (also `cloudEvents:`) on AMQP.

use crate::clock::{Millis, from_rfc3339, rfc3339};
use crate::handler::is_reserved;
use crate::message::{Draft, Message, MessageError, kept};

/// The media type that needs no header.
pub(super) const JSON: &str = "application/json";
/// The `source` of an event whose message names none; CloudEvents requires one.
const SOURCE: &str = "perkey";

/// A protocol's names for the parts of a message.
pub(super) struct Scheme<'a> {
    /// Prefixes of attributes.
    pub(super) prefixes: &'a [&'a str],
    /// The header with the id if there is no such attribute; empty: none.
    pub(super) id_header: &'a str,
    /// The header with the key if there is no attribute `partitionkey`; empty: the key is in no header.
    pub(super) key_header: &'a str,
}

/// The reason why a broker's record is not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    /// The client library gives such a header no name.
    #[cfg(feature = "kafka")]
    #[error("a header's name is not valid UTF-8")]
    HeaderName,
    /// A header that is read as text.
    #[error("the header {0:?} is not valid UTF-8")]
    Header(String),
    /// A name, or all of it.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// Headers by their meaning.
#[derive(Default)]
pub(super) struct Named<'a> {
    pub(super) id: Option<&'a [u8]>,
    pub(super) plain_id: Option<&'a [u8]>,
    pub(super) key: Option<&'a [u8]>,
    pub(super) plain_key: Option<&'a [u8]>,
    pub(super) kind: Option<&'a [u8]>,
    pub(super) source: Option<&'a [u8]>,
    pub(super) time: Option<Millis>,
    pub(super) others: Vec<(&'a str, &'a str)>,
}

impl<'a> Named<'a> {
    /// Takes a header; the error says why the message cannot be used.
    pub(super) fn take(&mut self, name: &'a str, value: &'a [u8], scheme: &Scheme<'_>) -> Result<(), RecordError> {
        let attribute = scheme.prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
        match attribute {
            Some("id") => self.id = Some(value),
            Some("type") => self.kind = Some(value),
            Some("source") => self.source = Some(value),
            // An invalid time is not worth a dead letter: the record has one, too.
            Some("time") => self.time = from_rfc3339(text(name, value)?),
            Some("specversion") => {}
            Some("partitionkey") if !scheme.key_header.is_empty() => self.key = Some(value),
            Some(extension) if is_reserved(extension) => {}
            Some(extension) => self.others.push((extension, text(name, value)?)),
            None => self.take_plain(name, value, scheme)?,
        }
        Ok(())
    }

    fn take_plain(&mut self, name: &'a str, value: &'a [u8], scheme: &Scheme<'_>) -> Result<(), RecordError> {
        match name {
            "content-type" if value == JSON.as_bytes() => {}
            _ if name == scheme.id_header && self.plain_id.is_none() => self.plain_id = Some(value),
            _ if name == scheme.key_header => self.plain_key = Some(value),
            _ if is_reserved(name) => {}
            "content-type" | "traceparent" | "tracestate" => self.others.push((name, text(name, value)?)),
            // Bytes that only their own reader understands, such as a schema's number, mean nothing here.
            _ => self.others.extend(std::str::from_utf8(value).ok().map(|value| (name, value))),
        }
        Ok(())
    }
}

fn text<'a>(name: &str, value: &'a [u8]) -> Result<&'a str, RecordError> {
    std::str::from_utf8(value).map_err(|_| RecordError::Header(name.to_owned()))
}

/// The message that an operator sees for a record that cannot be used: its names, and a part of its payload.
pub(super) fn shown(draft: &Draft<'_>) -> Message {
    let draft = Draft { payload: kept(draft.payload), headers: &[], ..*draft };
    draft.build_unchecked().expect("names within their bounds and 64 KiB of payload fit a frame")
}

/// Writes a message as headers, with one call of `put` each; its key, content type and payload go elsewhere.
pub(super) fn say(message: &Message, prefix: &str, mut put: impl FnMut(&str, &str)) {
    let source = if message.source().is_empty() { SOURCE } else { message.source() };
    let attributes = [("specversion", "1.0"), ("id", message.id()), ("type", message.kind()), ("source", source)];
    // One buffer for all names: each event is written once for each sink.
    let mut buffer = prefix.to_owned();
    let mut header = |is_attribute: bool, name: &str, value: &str| {
        if !is_attribute {
            return put(name, value);
        }
        buffer.truncate(prefix.len());
        buffer.push_str(name);
        put(&buffer, value);
    };
    for (name, value) in attributes {
        header(true, name, value);
    }
    if message.time() > 0 {
        header(true, "time", &rfc3339(message.time()));
    }
    for (name, value) in message.headers().filter(|(name, _)| *name != "content-type") {
        header(is_extension(name), name, value);
    }
}

/// The media type of a message's payload.
pub(super) fn content_type(message: &Message) -> &str {
    message.header("content-type").unwrap_or(JSON)
}

/// Returns whether a header is an attribute of CloudEvents. The trace context travels under the names of its own
/// standard.
fn is_extension(name: &str) -> bool {
    !["traceparent", "tracestate", "baggage"].contains(&name)
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// Mixes bytes into a fingerprint, eight at a time: each record is hashed once, with all its parts. Fingerprints are
/// stored with positions: this must not change.
pub(super) fn absorb(hash: u64, bytes: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| (hash.rotate_left(26) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(mix(hash, bytes.len() as u64), |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(hash, u64::from_le_bytes(last))
}
