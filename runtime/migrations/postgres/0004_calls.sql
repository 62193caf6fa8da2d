-- Commands whose senders wait for an answer, by a hash of tenant, principal, operation and idempotency key. One without
-- an `ended` still runs: its message is in the log, in a shard's hands or in `pending`. Pages have room for the answer
-- beside the record, so that writing it touches no index.
CREATE TABLE calls (
    id bytea NOT NULL PRIMARY KEY,
    fingerprint bytea NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    service text COLLATE "C" NOT NULL,
    message_id text COLLATE "C" NOT NULL,
    accepted_at bigint NOT NULL,
    expires_at bigint NOT NULL,
    ended text,
    code text,
    body bytea
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX calls_expiry ON calls (expires_at);
