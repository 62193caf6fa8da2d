//! Fingerprints of contents, by which two messages with one id are told apart.
//! In: messages. Out: eight bytes for the content of each; its id with them, as the inbox takes it.

use super::hash::{digest, murmur2};
use super::{Message, keyed_hash};

/// A fingerprint of a message's content in eight bytes: a keyed hash of its payload, byte by byte. JSON with its
/// members in another order, or other white space, is another content: reading each message for this alone would cost
/// more than all other work on its id.
///
/// Only the payload counts. A copy may come through another door, at another time and with other headers, and a record
/// that names no type has its topic's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Print(pub [u8; Print::BYTES]);

impl Print {
    /// Length in a `commits.prints` blob.
    pub const BYTES: usize = 8;

    /// The content is not known: it may be any.
    pub const UNKNOWN: Self = Self([0; Self::BYTES]);

    /// The print of the content of `message`.
    pub fn of(message: &Message, hash_key: &[u8; 32]) -> Self {
        let mut print = Self::UNKNOWN;
        print.0.copy_from_slice(&keyed_hash(message.payload(), hash_key)[..Self::BYTES]);
        // No known content has the print that means unknown.
        if print == Self::UNKNOWN { Self([1; Self::BYTES]) } else { print }
    }

    /// Returns whether both prints are known and differ.
    pub fn differs(self, other: Self) -> bool {
        self != other && self != Self::UNKNOWN && other != Self::UNKNOWN
    }
}

/// An id that is taken, and the print of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Taken {
    /// The id within its scope.
    pub id: TakenId,
    /// The print of the content that came with it.
    pub print: Print,
}

impl Taken {
    /// `message` as `service` (by its number) takes it.
    pub fn of(message: &Message, service: u16, hash_key: &[u8; 32]) -> Self {
        Self { id: TakenId::of(message, service, hash_key), print: Print::of(message, hash_key) }
    }

    /// The entry of a message whose id was taken before with other content: an id made of both, so that the first
    /// message keeps its entry, and a copy of this one is recognised.
    pub fn apart(&self, hash_key: &[u8; 32]) -> Self {
        let mut id = self.id;
        // No message id has a NUL.
        let both = [&b"\0"[..], &self.id.digest(), &self.print.0].concat();
        id.0[..16].copy_from_slice(&keyed_hash(&both, hash_key));
        Self { id, print: self.print }
    }
}

impl From<TakenId> for Taken {
    /// An id with unknown content.
    fn from(id: TakenId) -> Self {
        Self { id, print: Print::UNKNOWN }
    }
}

/// The id of a message within its scope, as the inbox keeps it: 16 bytes of the id (a UUID as it is, anything
/// else hashed under the store's key), 4 of the key's murmur2, 2 of the service's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TakenId(pub [u8; TakenId::BYTES]);

impl TakenId {
    /// Length in a `commits.ids` blob.
    pub const BYTES: usize = 22;

    /// Takes the place of a service's number for events that a sink refused.
    pub(crate) const OUTGOING: u16 = u16::MAX - 1;

    /// The id of `message` as `service` (by its number) takes it: within its source, if a binding asked for that.
    pub fn of(message: &Message, service: u16, hash_key: &[u8; 32]) -> Self {
        let mut raw = [0; Self::BYTES];
        let id = match message.id_is_within_source() {
            true => keyed_hash(id_within(message.source(), message.id()).as_bytes(), hash_key),
            false => digest(message.id(), hash_key),
        };
        raw[..16].copy_from_slice(&id);
        raw[16..20].copy_from_slice(&murmur2(message.key().as_bytes()).to_le_bytes());
        raw[20..].copy_from_slice(&service.to_le_bytes());
        Self(raw)
    }

    /// The id of an event that a sink refused. It has a scope of its own, as no service takes the event.
    pub fn outgoing(event: &Message, hash_key: &[u8; 32]) -> Self {
        Self::of(event, Self::OUTGOING, hash_key)
    }

    /// Returns whether the id belongs to an event that a sink refused.
    pub fn is_outgoing(&self) -> bool {
        self.0[20..] == Self::OUTGOING.to_le_bytes()
    }

    /// The 16 bytes that stand for the id.
    pub fn digest(&self) -> [u8; 16] {
        let mut digest = [0; 16];
        digest.copy_from_slice(&self.0[..16]);
        digest
    }

    /// Returns whether this is the id `digest` in any scope.
    pub fn is(&self, digest: &[u8; 16]) -> bool {
        self.0[..16] == *digest
    }
}

/// An id and the source in which it is unique, as one text. A source is a URI reference, which has no space: a source
/// with one is set apart by a character that no id can have, so that no two pairs give the same text.
fn id_within(source: &str, id: &str) -> String {
    let between = if source.contains(' ') { '\0' } else { ' ' };
    format!("{source}{between}{id}")
}

#[cfg(test)]
mod tests {
    use super::super::Draft;
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn draft() -> Draft<'static> {
        Draft { id: "1", key: "a", kind: "posted", payload: b"{\"amount\":100}", ..Draft::default() }
    }

    fn taken(draft: &Draft<'_>) -> Taken {
        Taken::of(&draft.build().unwrap(), 1, &KEY)
    }

    #[test]
    fn a_print_is_of_the_payload_and_of_nothing_else() {
        let headers = [("importline", "7")];
        let same = Draft { kind: "other", source: "import:f", time: 9, headers: &headers, ..draft() };
        assert_eq!(taken(&draft()), taken(&same));
        let other = taken(&Draft { payload: b"{\"amount\":700}", ..draft() });
        assert!(other.id == taken(&draft()).id && other.print.differs(taken(&draft()).print));
        assert!(taken(&Draft { payload: b"", ..draft() }).print != Print::UNKNOWN);
        assert!(!Print::UNKNOWN.differs(other.print) && !other.print.differs(Print::UNKNOWN));
        // Stores keep it: it must not change.
        assert_eq!(other.print.0, PRINT);
    }

    const PRINT: [u8; 8] = [200, 134, 41, 17, 5, 121, 172, 80];

    #[test]
    fn another_content_is_taken_under_an_id_of_its_own_in_the_same_scope() {
        let (first, second) = (taken(&draft()), taken(&Draft { payload: b"{}", ..draft() }));
        let (own, again) = (second.apart(&KEY), second.apart(&KEY));
        assert_eq!((own, own.print), (again, second.print));
        assert!(own.id != first.id && own.id != first.apart(&KEY).id);
        assert_eq!(own.id.0[16..], first.id.0[16..], "the key and the service are the same");
    }
}
