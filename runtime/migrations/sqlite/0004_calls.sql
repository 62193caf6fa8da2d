-- Commands whose senders wait for an answer, by a hash of tenant, principal, operation and idempotency key. One without
-- an `ended` still runs: its message is in the log, in a shard's hands or in `pending`.
CREATE TABLE calls (
    id BLOB NOT NULL PRIMARY KEY,
    fingerprint BLOB NOT NULL,
    tenant TEXT NOT NULL,
    service TEXT NOT NULL,
    message_id TEXT NOT NULL,
    accepted_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    ended TEXT,
    code TEXT,
    body BLOB
) STRICT, WITHOUT ROWID;
CREATE INDEX calls_expiry ON calls (expires_at);
