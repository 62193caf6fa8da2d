//! Records of calls as Redis holds them.
//! In: a record, or bytes that anybody may have written. Out: bytes, or the record that this store wrote, whole.

use bytes::Bytes;

use crate::handler::CallId;
use crate::store::calls::{CallEnd, CallOutcome, CallRecord};

/// The first byte of an entry; another format has another number.
const FORMAT: &[u8] = b"perkey1";
/// Bytes of the seal.
const SEAL: usize = 16;
/// Bytes of an entry beside its code and its body.
pub(super) const OVERHEAD: usize = FORMAT.len() + 16 + 32 + 8 + 8 + 1 + 4 + SEAL;

/// The part of a cache that belongs to one store.
pub(super) struct CacheScope {
    prefix: String,
    seal: [u8; 32],
}

impl CacheScope {
    /// The part of the store with this secret, which neither the prefix nor a seal reveals.
    pub(super) fn of(secret: &[u8; 32]) -> Self {
        let name = blake3::derive_key("perkey replay cache: prefix of keys", secret);
        Self {
            prefix: format!("perkey:{:.16}", blake3::Hash::from(name).to_hex()),
            seal: blake3::derive_key("perkey replay cache: seal of entries", secret),
        }
    }

    /// The key of a call.
    pub(super) fn key(&self, id: CallId) -> String {
        format!("{}:{id}", self.prefix)
    }

    /// The entry of a record; `None` while the call runs.
    pub(super) fn encode(&self, record: &CallRecord) -> Option<Vec<u8>> {
        let outcome = record.outcome.as_ref()?;
        let code = outcome.code.as_bytes();
        let mut entry = Vec::with_capacity(OVERHEAD + code.len() + outcome.body.len());
        entry.extend_from_slice(FORMAT);
        entry.extend_from_slice(&record.id.0);
        entry.extend_from_slice(&record.fingerprint);
        entry.extend_from_slice(&record.accepted_at.to_le_bytes());
        entry.extend_from_slice(&record.expires_at.to_le_bytes());
        entry.push(match outcome.end {
            CallEnd::Done => 0,
            CallEnd::Refused => 1,
            CallEnd::Failed => 2,
        });
        entry.extend_from_slice(&u32::try_from(code.len()).ok()?.to_le_bytes());
        entry.extend_from_slice(code);
        entry.extend_from_slice(&outcome.body);
        let seal = self.seal(&entry);
        entry.extend_from_slice(&seal);
        Some(entry)
    }

    /// The record of a call; `None` if the entry is torn, foreign, or another call's.
    pub(super) fn decode(&self, id: CallId, entry: &[u8]) -> Option<CallRecord> {
        let (sealed, seal) = entry.split_last_chunk::<SEAL>()?;
        if *seal != self.seal(sealed) {
            return None;
        }
        let rest = sealed.strip_prefix(FORMAT)?;
        let (found, rest) = rest.split_first_chunk::<16>()?;
        let (fingerprint, rest) = rest.split_first_chunk::<32>()?;
        let (accepted_at, rest) = rest.split_first_chunk::<8>()?;
        let (expires_at, rest) = rest.split_first_chunk::<8>()?;
        let ([end], rest) = rest.split_first_chunk::<1>()?;
        let (code_len, rest) = rest.split_first_chunk::<4>()?;
        let (code, body) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*code_len)).ok()?)?;
        let end = match end {
            0 => CallEnd::Done,
            1 => CallEnd::Refused,
            2 => CallEnd::Failed,
            _ => return None,
        };
        let code = std::str::from_utf8(code).ok()?.to_owned();
        let record = CallRecord {
            id,
            fingerprint: *fingerprint,
            // An answer is the same without it.
            message_id: String::new(),
            accepted_at: u64::from_le_bytes(*accepted_at),
            expires_at: u64::from_le_bytes(*expires_at),
            outcome: Some(CallOutcome { end, code, body: Bytes::copy_from_slice(body) }),
        };
        (*found == id.0).then_some(record)
    }

    fn seal(&self, bytes: &[u8]) -> [u8; SEAL] {
        let mut seal = [0; SEAL];
        seal.copy_from_slice(&blake3::keyed_hash(&self.seal, bytes).as_bytes()[..SEAL]);
        seal
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(id: [u8; 16], end: CallEnd, code: String, body: Vec<u8>) -> CallRecord {
        let outcome = CallOutcome { end, code, body: body.into() };
        CallRecord {
            id: CallId(id),
            fingerprint: [7; 32],
            message_id: String::new(),
            accepted_at: 5,
            expires_at: u64::MAX,
            outcome: Some(outcome),
        }
    }

    fn end() -> impl Strategy<Value = CallEnd> {
        prop_oneof![Just(CallEnd::Done), Just(CallEnd::Refused), Just(CallEnd::Failed)]
    }

    proptest! {
        #[test]
        fn every_record_comes_back_and_nothing_else_does(
            id in any::<[u8; 16]>(), end in end(), code in ".{0,12}", body in prop::collection::vec(any::<u8>(), 0..40),
            at in any::<prop::sample::Index>(), bit in 0..8u8,
        ) {
            let (scope, record) = (CacheScope::of(&[1; 32]), record(id, end, code, body));
            let entry = scope.encode(&record).unwrap();
            prop_assert_eq!(scope.decode(record.id, &entry), Some(record.clone()));
            prop_assert_eq!(CacheScope::of(&[2; 32]).decode(record.id, &entry), None);
            prop_assert_eq!(scope.decode(CallId([id[0] ^ 1; 16]), &entry), None);
            let at = at.index(entry.len());
            prop_assert_eq!(scope.decode(record.id, &entry[..at]), None, "it is torn");
            let mut other = entry;
            other[at] ^= 1 << bit;
            prop_assert_eq!(scope.decode(record.id, &other), None, "a bit of it is another");
        }

        #[test]
        fn no_bytes_of_others_are_a_record(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(CacheScope::of(&[1; 32]).decode(CallId([1; 16]), &bytes), None);
        }
    }

    #[test]
    fn what_still_runs_has_no_entry_and_stores_have_keys_of_their_own() {
        let running = CallRecord { outcome: None, ..record([1; 16], CallEnd::Done, String::new(), Vec::new()) };
        assert_eq!(CacheScope::of(&[1; 32]).encode(&running), None);
        assert_eq!(CacheScope::of(&[1; 32]).key(running.id), CacheScope::of(&[1; 32]).key(running.id));
        assert_ne!(CacheScope::of(&[1; 32]).key(running.id), CacheScope::of(&[2; 32]).key(running.id));
    }
}
