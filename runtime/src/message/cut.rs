//! The part of a message that is kept where it is too large. Pure.
//! In: a message, a payload. Out: a part of it that says so, and that is never run.

use super::{Draft, ID_WITHIN, Message};

/// Header of a message that was too large, and of which a part is kept: how many bytes it had.
pub(crate) const CUT_FROM: &str = "perkeycutfrom";

/// Bytes of the payload that are kept of what is too large, or is no message.
pub(crate) const KEPT_BYTES: usize = 64 << 10;

/// As much of a payload as is kept of what is too large, or is no message.
pub(crate) fn kept(payload: &[u8]) -> &[u8] {
    &payload[..payload.len().min(KEPT_BYTES)]
}

impl Message {
    /// The bytes that the message had, where only a part of it was kept.
    pub(crate) fn cut_from(&self) -> Option<&str> {
        self.header(CUT_FROM)
    }

    /// Itself, with as much of its payload as is kept of what is too large.
    pub(crate) fn cut(&self) -> Self {
        let bytes = self.frame().len().to_string();
        let within = self.id_is_within_source().then_some((ID_WITHIN, "source"));
        let headers: Vec<_> = [(CUT_FROM, bytes.as_str())].into_iter().chain(within).collect();
        let (id, key, kind, source, time) = (self.id(), self.key(), self.kind(), self.source(), self.time());
        let draft = Draft { id, key, kind, source, time, headers: &headers, payload: kept(self.payload()) };
        draft.build_unchecked().expect("a frame has room for a part of what was in one")
    }
}
