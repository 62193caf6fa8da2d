//! Messages, with their ids and keys. Plain values, no behaviour.
//! In: attributes and payload, or the bytes of a stored frame. Out: one immutable frame with cheap views into it.
//!
//! The attributes are those of CloudEvents 1.0 (`id`, `source`, `type`, `time`, extensions as headers).

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use unicode_normalization::{UnicodeNormalization, is_nfc};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};
use uuid::Uuid;

pub(crate) use self::ahead::united;
pub use self::ahead::{Ahead, Stretch};
pub(crate) use self::cut::{CUT_FROM, KEPT_BYTES, kept};
pub(crate) use self::hash::keyed_hash;
pub use self::hash::{digest, murmur2, shard_of};
pub(crate) use self::index::index;
pub use self::index::{ServiceIx, SinkIx, SourceIx};
pub use self::position::{Position, Positions};
pub use self::print::{Print, Taken, TakenId};
use crate::clock::Millis;

mod ahead;
mod cut;
mod hash;
mod index;
mod position;
mod print;

/// The longest key, id, type or source, in bytes.
pub const NAME_BYTES_MAX: usize = 256;

/// Header of a message whose id is unique within its source only.
pub(crate) const ID_WITHIN: &str = "perkeyidwithin";

const VERSION: u8 = 1;
const HEAD: usize = 25;

/// Number of a shard, from 0.
pub type ShardNo = u32;

/// Reasons why an attribute cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The attribute must not be empty.
    #[error("the {0} is empty")]
    Empty(&'static str),
    /// The attribute is longer than [`NAME_BYTES_MAX`].
    #[error("the {name} has {bytes} bytes, at most {NAME_BYTES_MAX} are allowed")]
    TooLong {
        /// The attribute.
        name: &'static str,
        /// Its length in bytes.
        bytes: usize,
    },
    /// The attribute is not UTF-8.
    #[error("the {0} is not valid UTF-8")]
    NotUtf8(&'static str),
    /// The attribute contains a NUL character, which no SQL text can hold.
    #[error("the {0} contains a NUL character")]
    Nul(&'static str),
    /// The attribute begins or ends with white space, which nobody sees.
    #[error("the {0} begins or ends with white space")]
    Space(&'static str),
    /// The attribute contains an invisible character, or one that turns the text around it.
    #[error("the {name} contains the character U+{:04X}, which is not seen or changes how the others are", u32::from(*.character))]
    Invisible {
        /// The attribute.
        name: &'static str,
        /// The character.
        character: char,
    },
    /// The attribute is not in Unicode's normal form C: another one looks the same.
    #[error("the {name} is not in Unicode's normal form NFC, in which it has the characters {nfc:?}")]
    NotNormal {
        /// The attribute.
        name: &'static str,
        /// The attribute in that form, with every character beyond ASCII by its number.
        nfc: String,
    },
    /// The payload or the headers are larger than 4 GiB, or their sum than the given bound.
    #[error("the message has {bytes} bytes, at most {max} are allowed")]
    TooLarge {
        /// Size of the message.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// The stored bytes are not a frame of a version that this program reads.
    #[error("the stored message does not decode: {0}")]
    Frame(&'static str),
}

/// Checks a name-like attribute: 1 to [`NAME_BYTES_MAX`] bytes of UTF-8, of which two that look alike are equal: no
/// control or format characters (bidirectional marks are among them), no white space at its ends, in Unicode's normal
/// form C.
pub fn check_name<'a>(name: &'static str, bytes: &'a [u8]) -> Result<&'a str, MessageError> {
    if bytes.is_empty() {
        return Err(MessageError::Empty(name));
    }
    if bytes.len() > NAME_BYTES_MAX {
        return Err(MessageError::TooLong { name, bytes: bytes.len() });
    }
    let text = std::str::from_utf8(bytes).map_err(|_| MessageError::NotUtf8(name))?;
    if text.contains('\0') {
        return Err(MessageError::Nul(name));
    }
    // Nearly all names are plain ASCII.
    let is_plain = bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
    if is_plain && bytes[0] != b' ' && bytes[bytes.len() - 1] != b' ' { Ok(text) } else { check_text(name, text) }
}

/// Returns whether a character is invisible and changes how others look: controls, bidirectional marks, line
/// separators.
pub fn is_unseen(c: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator};
    matches!(c.general_category(), Control | Format | LineSeparator | ParagraphSeparator)
}

fn check_text<'a>(name: &'static str, text: &'a str) -> Result<&'a str, MessageError> {
    if text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace) {
        return Err(MessageError::Space(name));
    }
    if let Some(character) = text.chars().find(|c| is_unseen(*c)) {
        return Err(MessageError::Invisible { name, character });
    }
    if !is_nfc(text) {
        let nfc = text.nfc().flat_map(|c| if c.is_ascii() { vec![c] } else { c.escape_unicode().collect() }).collect();
        return Err(MessageError::NotNormal { name, nfc });
    }
    Ok(text)
}

/// The key that orders messages: an order id, an account id, any routing key. Checked when it enters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<Uuid> for Key {
    fn from(id: Uuid) -> Self {
        Self(id.to_string())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One message: an immutable frame of bytes; cloning it costs one reference count.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    frame: Bytes,
}

/// The attributes of a message that is being made. Only `id`, `key` and `kind` are required.
#[derive(Clone, Debug, Default)]
pub struct Draft<'a> {
    /// CloudEvents `id`; a UUID is compared as a number, anything else as text.
    pub id: &'a str,
    /// The key that orders the message (CloudEvents `partitionkey`).
    pub key: &'a str,
    /// CloudEvents `type`.
    pub kind: &'a str,
    /// CloudEvents `source`: the producer of the message.
    pub source: &'a str,
    /// CloudEvents `time`.
    pub time: Millis,
    /// CloudEvents extensions, such as `traceparent` or `sagaid`.
    pub headers: &'a [(&'a str, &'a str)],
    /// The payload, usually JSON.
    pub payload: &'a [u8],
}

impl Draft<'_> {
    /// Checks the attributes and makes the frame.
    pub fn build(&self) -> Result<Message, MessageError> {
        check_name("id", self.id.as_bytes())?;
        check_name("key", self.key.as_bytes())?;
        check_name("type", self.kind.as_bytes())?;
        self.build_unchecked()
    }

    /// Makes the frame of a message that is only kept for inspection, as its key or id could not be used.
    pub fn build_unchecked(&self) -> Result<Message, MessageError> {
        let headers: usize = self.headers.iter().map(|(n, v)| 6 + n.len() + v.len()).sum();
        let texts = [self.id, self.key, self.kind, self.source];
        let bytes = HEAD + headers + self.payload.len() + texts.iter().map(|t| t.len()).sum::<usize>();
        let too_large = MessageError::TooLarge { bytes, max: u32::MAX as usize };
        let payload = u32::try_from(self.payload.len()).map_err(|_| too_large.clone())?;
        let mut frame = BytesMut::with_capacity(bytes);
        frame.put_u8(VERSION);
        frame.put_u64_le(self.time);
        for text in texts {
            frame.put_u16_le(u16::try_from(text.len()).map_err(|_| too_large.clone())?);
        }
        frame.put_u32_le(u32::try_from(headers).map_err(|_| too_large.clone())?);
        frame.put_u32_le(payload);
        for text in texts {
            frame.put_slice(text.as_bytes());
        }
        for (name, value) in self.headers {
            frame.put_u16_le(u16::try_from(name.len()).map_err(|_| too_large.clone())?);
            frame.put_u32_le(u32::try_from(value.len()).map_err(|_| too_large.clone())?);
            frame.put_slice(name.as_bytes());
            frame.put_slice(value.as_bytes());
        }
        frame.put_slice(self.payload);
        Ok(Message { frame: frame.freeze() })
    }
}

impl Message {
    /// Reads a stored frame; the message shares the given bytes.
    pub fn from_frame(frame: Bytes) -> Result<Self, MessageError> {
        if frame.first() != Some(&VERSION) {
            return Err(MessageError::Frame("unknown version"));
        }
        if frame.len() < HEAD {
            return Err(MessageError::Frame("cut short"));
        }
        let message = Self { frame };
        if message.payload_at() + message.u32_at(21) as usize != message.frame.len() {
            return Err(MessageError::Frame("lengths do not add up"));
        }
        let texts = message.frame.get(HEAD..HEAD + message.texts_len());
        if texts.is_none_or(|texts| std::str::from_utf8(texts).is_err()) {
            return Err(MessageError::Frame("not UTF-8"));
        }
        Ok(message)
    }

    /// The frame, as stored in logs, pending rows and dead letters.
    pub fn frame(&self) -> &Bytes {
        &self.frame
    }

    /// CloudEvents `id`.
    pub fn id(&self) -> &str {
        self.text(0)
    }

    /// The key that orders the message.
    pub fn key(&self) -> &str {
        self.text(1)
    }

    /// CloudEvents `type`.
    pub fn kind(&self) -> &str {
        self.text(2)
    }

    /// CloudEvents `source`.
    pub fn source(&self) -> &str {
        self.text(3)
    }

    /// CloudEvents `time`, in milliseconds since the epoch; 0 when it was not given.
    pub fn time(&self) -> Millis {
        let mut raw = [0; 8];
        raw.copy_from_slice(&self.frame[1..9]);
        Millis::from_le_bytes(raw)
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        &self.frame[self.payload_at()..]
    }

    /// Returns whether its id is unique within its source only.
    pub(crate) fn id_is_within_source(&self) -> bool {
        self.header(ID_WITHIN).is_some()
    }

    /// The value of a header (a CloudEvents extension).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// All headers, in the order given.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let end = self.payload_at();
        let mut at = end - self.u32_at(17) as usize;
        std::iter::from_fn(move || {
            if at + 6 > end {
                return None;
            }
            let name_len = self.u16_at(at) as usize;
            let value_len = self.u32_at(at + 2) as usize;
            let name = self.frame.get(at + 6..at + 6 + name_len)?;
            let value = self.frame.get(at + 6 + name_len..at + 6 + name_len + value_len)?;
            at += 6 + name_len + value_len;
            Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
        })
    }

    fn text(&self, which: usize) -> &str {
        let start = HEAD + (0..which).map(|i| self.u16_at(9 + 2 * i) as usize).sum::<usize>();
        let end = start + self.u16_at(9 + 2 * which) as usize;
        std::str::from_utf8(&self.frame[start..end]).unwrap_or("")
    }

    fn payload_at(&self) -> usize {
        HEAD + self.texts_len() + self.u32_at(17) as usize
    }

    fn texts_len(&self) -> usize {
        (0..4).map(|i| self.u16_at(9 + 2 * i) as usize).sum()
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.frame[at], self.frame[at + 1]])
    }

    fn u32_at(&self, at: usize) -> u32 {
        let mut raw = [0; 4];
        raw.copy_from_slice(&self.frame[at..at + 4]);
        u32::from_le_bytes(raw)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The payload may be private: it never reaches a log through Debug.
        f.debug_struct("Message")
            .field("id", &self.id())
            .field("key", &self.key())
            .field("kind", &self.kind())
            .field("payload_bytes", &self.payload().len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft() -> Draft<'static> {
        Draft { id: "m-1", key: "acct-1", kind: "posted", payload: b"{}", ..Draft::default() }
    }

    #[test]
    fn a_frame_gives_back_what_was_put_in() {
        let headers = [("traceparent", "00-1-2-01"), ("sagaid", "s-é")];
        let made = Draft { source: "import:x", time: 42, headers: &headers, ..draft() }.build().unwrap();
        let read = Message::from_frame(made.frame().clone()).unwrap();
        let texts = [read.id(), read.key(), read.kind(), read.source()];
        assert_eq!(texts, ["m-1", "acct-1", "posted", "import:x"]);
        assert_eq!((read.time(), read.payload()), (42, &b"{}"[..]));
        assert_eq!(read.headers().collect::<Vec<_>>(), headers);
        assert_eq!(read.header("sagaid"), Some("s-é"));
    }

    #[test]
    fn bad_attributes_are_named() {
        let long = "k".repeat(300);
        assert_eq!(Draft { key: "", ..draft() }.build(), Err(MessageError::Empty("key")));
        assert_eq!(Draft { key: &long, ..draft() }.build(), Err(MessageError::TooLong { name: "key", bytes: 300 }));
        assert_eq!(Draft { key: "a\0b", ..draft() }.build(), Err(MessageError::Nul("key")));
        assert_eq!(check_name("key", b"\xff"), Err(MessageError::NotUtf8("key")));
    }

    #[test]
    fn names_that_look_alike_are_alike_or_refused() {
        for fine in
            ["acct-1", "Erika Mustermann", "caf\u{e9}", "\u{4e2d}\u{6587}", "\u{5d0}\u{5d1}", "a\u{a0}b", "\u{1F600}"]
        {
            assert_eq!(check_name("key", fine.as_bytes()), Ok(fine));
        }
        for (bad, reason) in [
            (" a", "begins or ends with white space"),
            ("a\t", "begins or ends with white space"),
            ("a\u{a0}", "begins or ends with white space"),
            ("a\u{3000}", "begins or ends with white space"),
            ("a\nb", "U+000A"),
            ("a\u{7f}b", "U+007F"),
            ("a\u{200b}b", "U+200B"),
            ("a\u{202e}b", "U+202E"),
            ("a\u{2066}b", "U+2066"),
            ("\u{feff}a", "U+FEFF"),
            ("a\u{ad}b", "U+00AD"),
            ("a\u{2028}b", "U+2028"),
            ("cafe\u{301}", "\"caf\\\\u{e9}\""),
            ("\u{212b}", "NFC"),
        ] {
            let said = check_name("key", bad.as_bytes()).unwrap_err().to_string();
            assert!(said.contains(reason), "{bad:?}: {said}");
        }
    }

    #[test]
    fn cut_or_foreign_frames_are_refused() {
        let frame = draft().build().unwrap().frame().clone();
        for end in 0..frame.len() {
            assert!(Message::from_frame(frame.slice(..end)).is_err(), "{end} bytes");
        }
        assert!(Message::from_frame(Bytes::from_static(b"\x09junk")).is_err());
    }

    #[test]
    fn murmur2_is_kafkas() {
        // Vectors of Apache Kafka's UtilsTest.testMurmur2 (4.1).
        for (text, expected) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()).cast_signed(), expected, "{text}");
        }
    }

    #[test]
    fn an_id_within_its_source_is_another_one_in_another_source() {
        let taken = |source, id, within: bool| {
            let headers: &[(&str, &str)] = if within { &[(ID_WITHIN, "source")] } else { &[] };
            TakenId::of(&Draft { id, source, headers, ..draft() }.build().unwrap(), 1, &[7; 32])
        };
        assert_eq!(taken("/a", "1", false), taken("/b", "1", false), "whoever sent it");
        assert_ne!(taken("/a", "1", true), taken("/b", "1", true));
        assert_eq!(taken("/a", "1", true), taken("/a", "1", true));
        assert_ne!(taken("a b", "c", true), taken("a", "b c", true), "no two pairs are one");
        let uuid = "0190a6c4-7d5e-7b3a-8a5d-000000000001";
        assert_ne!(taken("/a", uuid, true), taken("/b", uuid, true));
        assert!(taken("/a", "1", true).is(&digest("/a 1", &[7; 32])), "so it is asked for");
    }

    #[test]
    fn a_uuid_is_the_same_id_in_either_case() {
        let id = "0190a6c4-7d5e-7b3a-8a5d-000000000001";
        assert_eq!(digest(id, &[7; 32]), digest(&id.to_uppercase(), &[7; 32]));
        assert_ne!(digest("a", &[7; 32]), digest("a", &[8; 32]));
    }
}
