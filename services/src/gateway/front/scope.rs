//! The identity of a call: its caller, its key, and its request.
//! In: a caller, an operation, a key, a body. Out: hashes, the same on every gateway; the id of the entity that is
//! made.

use perkey::unstable::handler::CallId;
use perkey::unstable::store::calls::Fingerprint;
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::gateway::auth::Caller;
use crate::gateway::key::IdempotencyKey;
use crate::gateway::operations::Operation;
use crate::gateway::problem::{Kind, Problem};

/// The name of the algorithm of fingerprints: another algorithm gets another name.
const ALGORITHM: &str = "sha256-jcs-1";

/// The id of a call: no other caller, operation or key has the same.
pub(super) fn id(caller: &Caller, operation: &Operation, key: &IdempotencyKey) -> CallId {
    let hash = hash([caller.tenant.as_str(), &caller.principal, operation.name, key.as_str()].map(str::as_bytes));
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    CallId(id)
}

/// The fingerprint of a request. Spaces and the order of members make no difference; null and a missing member do.
pub(super) fn fingerprint(operation: &Operation, target: Option<&str>, body: &Value) -> Result<Fingerprint, Problem> {
    let canonical = serde_json_canonicalizer::to_vec(body);
    let canonical =
        canonical.map_err(|error| Problem::new(Kind::Malformed, format!("the body is not JSON: {error}")))?;
    let parts = [ALGORITHM.as_bytes(), operation.name.as_bytes(), target.unwrap_or_default().as_bytes(), &canonical];
    Ok(hash(parts))
}

/// The id of the entity that a call makes: each repeat of it lands on the same actor.
pub(super) fn made(id: CallId) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &id.0)
}

/// A hash over parts, each behind its length: no two lists of parts run together.
fn hash<const N: usize>(parts: [&[u8]; N]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::gateway::operations::operation;

    fn caller(tenant: &str, principal: &str) -> Caller {
        Caller { tenant: tenant.to_owned(), principal: principal.to_owned(), roles: Vec::new() }
    }

    #[test]
    fn a_key_is_its_owners_and_its_operations_own() {
        let (key, other) = (IdempotencyKey::new("k").unwrap(), IdempotencyKey::new("kk").unwrap());
        let (post, place) = (operation("transactions.post").unwrap(), operation("orders.place").unwrap());
        let ann = caller("acme", "ann");
        let known = id(&ann, post, &key);
        assert_eq!(known, id(&ann, post, &key));
        for another in [
            id(&caller("acme", "bob"), post, &key),
            id(&caller("acmeann", ""), post, &key),
            id(&caller("other", "ann"), post, &key),
            id(&ann, place, &key),
            id(&ann, post, &other),
        ] {
            assert_ne!(known, another);
        }
        assert_eq!((made(known), made(known).get_version_num()), (made(known), 5));
    }

    #[test]
    fn a_fingerprint_is_of_what_is_asked_for() {
        let cancel = operation("orders.cancel").unwrap();
        let of = |target, body: Value| fingerprint(cancel, target, &body).unwrap();
        let known = of(Some("o"), json!({ "a": 1, "b": "x" }));
        assert_eq!(known, of(Some("o"), serde_json::from_str("{ \"b\": \"x\",\n\"a\": 1 }").unwrap()));
        for another in [
            of(Some("p"), json!({ "a": 1, "b": "x" })),
            of(Some("o"), json!({ "a": "1", "b": "x" })),
            of(Some("o"), json!({ "a": 1, "b": "x", "c": null })),
            fingerprint(operation("orders.place").unwrap(), Some("o"), &json!({ "a": 1, "b": "x" })).unwrap(),
        ] {
            assert_ne!(known, another);
        }
        assert_ne!(of(None, json!({ "m": "\u{e9}" })), of(None, json!({ "m": "e\u{301}" })));
    }
}
