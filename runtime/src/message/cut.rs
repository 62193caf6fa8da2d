//! The part that is kept of a message that is too large. Pure.
//! In: a message, a payload. Out: a part of it that is marked as such, and is never run.

use super::{Draft, ID_WITHIN, Message};

/// Header of a message that was too large, and of which a part is kept: the number of bytes that it had.
pub(crate) const CUT_FROM: &str = "perkeycutfrom";

/// The bytes of the payload that are kept of a message that is too large, or cannot be read as one.
pub(crate) const KEPT_BYTES: usize = 64 << 10;

/// The part of a payload that is kept of a message that is too large, or cannot be read as one.
pub(crate) fn kept(payload: &[u8]) -> &[u8] {
    &payload[..payload.len().min(KEPT_BYTES)]
}

impl Message {
    /// The number of bytes that the message had, if only a part of it was kept.
    pub(crate) fn cut_from(&self) -> Option<&str> {
        self.header(CUT_FROM)
    }

    /// The message with only the part of its payload that is kept if it is too large.
    pub(crate) fn cut(&self) -> Self {
        let bytes = self.frame().len().to_string();
        let within = self.id_is_within_source().then_some((ID_WITHIN, "source"));
        let headers: Vec<_> = [(CUT_FROM, bytes.as_str())].into_iter().chain(within).collect();
        let (id, key, kind, source, time) = (self.id(), self.key(), self.kind(), self.source(), self.time());
        let draft = Draft { id, key, kind, source, time, headers: &headers, payload: kept(self.payload()) };
        draft.build_unchecked().expect("a frame has room for a part of what was in one")
    }
}
