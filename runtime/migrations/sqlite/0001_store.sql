-- What a store records once: number of shards, the key that ids are hashed under (hex).
CREATE TABLE meta (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- A service's number is part of every id taken, so it is never used again.
CREATE TABLE services (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

-- The truth about a shard. `positions`: source -> origin -> {no, index}. `watermarks`: sink -> outbox_seq.
CREATE TABLE shards (
    shard INTEGER PRIMARY KEY,
    owner TEXT,
    epoch INTEGER NOT NULL DEFAULT 0,
    commit_no INTEGER NOT NULL DEFAULT 0,
    outbox_seq INTEGER NOT NULL DEFAULT 0,
    last_seq INTEGER NOT NULL DEFAULT 0,
    unclean INTEGER NOT NULL DEFAULT 0,
    code_version INTEGER NOT NULL DEFAULT 0,
    positions TEXT NOT NULL DEFAULT '{}',
    watermarks TEXT NOT NULL DEFAULT '{}',
    counters TEXT NOT NULL DEFAULT '{}'
) STRICT;

-- One row per commit. `ids`: 22 bytes each. `events`: each its service's number (2 bytes, little endian),
-- its cause (16), the length of its frame (4, little endian), its frame.
CREATE TABLE commits (
    shard INTEGER NOT NULL,
    commit_no INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    at INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    ids BLOB NOT NULL,
    events BLOB NOT NULL,
    PRIMARY KEY (shard, commit_no)
) STRICT;

CREATE TABLE states (
    service TEXT NOT NULL,
    key TEXT NOT NULL,
    version INTEGER NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (service, key)
) STRICT, WITHOUT ROWID;

-- Messages that wait. `name` is a timer's; a timer has no `seq` until it fires.
CREATE TABLE pending (
    shard INTEGER NOT NULL,
    seq INTEGER,
    service TEXT NOT NULL,
    key TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT,
    due_at INTEGER,
    taken_id BLOB NOT NULL,
    message_id TEXT NOT NULL,
    taken_at INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    history TEXT NOT NULL,
    message BLOB NOT NULL,
    UNIQUE (shard, seq)
) STRICT;
CREATE INDEX pending_key ON pending (shard, service, key, seq, due_at);
CREATE UNIQUE INDEX pending_timer ON pending (service, key, name) WHERE name IS NOT NULL;
CREATE INDEX pending_due ON pending (shard, due_at, seq) WHERE due_at IS NOT NULL;

CREATE TABLE dead_letters (
    shard INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    service TEXT NOT NULL,
    key TEXT NOT NULL,
    taken_id BLOB NOT NULL,
    message_id TEXT NOT NULL,
    at INTEGER NOT NULL,
    taken_at INTEGER NOT NULL,
    error TEXT NOT NULL,
    holds_key INTEGER NOT NULL CHECK (holds_key IN (0, 1)),
    history TEXT NOT NULL,
    message BLOB NOT NULL,
    PRIMARY KEY (shard, seq)
) STRICT;
CREATE INDEX dead_letters_key ON dead_letters (shard, key, seq);
CREATE INDEX dead_letters_holding ON dead_letters (shard, service, key) WHERE holds_key = 1;
CREATE INDEX dead_letters_id ON dead_letters (message_id);

-- Faults, restarts and moves of dead letters, for `explain`.
CREATE TABLE history (
    shard INTEGER NOT NULL,
    service TEXT NOT NULL,
    key TEXT NOT NULL,
    id TEXT NOT NULL,
    at INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    what TEXT NOT NULL,
    error TEXT NOT NULL
) STRICT;
CREATE INDEX history_id ON history (id);
CREATE INDEX history_key ON history (key);
CREATE INDEX history_at ON history (shard, at);

-- The embedded log: one row per commit (or outside batch) and target shard.
CREATE TABLE log (
    target INTEGER NOT NULL,
    origin TEXT NOT NULL,
    no INTEGER NOT NULL,
    count INTEGER NOT NULL,
    messages BLOB NOT NULL,
    PRIMARY KEY (target, origin, no)
) STRICT;

-- Last number of each outside writer's lane of the log.
CREATE TABLE lanes (
    origin TEXT NOT NULL PRIMARY KEY,
    no INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How far each import is; written with the messages that it counts.
CREATE TABLE imports (
    service TEXT NOT NULL,
    source TEXT NOT NULL,
    lines INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    rejects INTEGER NOT NULL,
    rejects_bytes INTEGER NOT NULL,
    lines_hash TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (service, source)
) STRICT, WITHOUT ROWID;

-- What operators asked for: also the audit.
CREATE TABLE operator_commands (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    action TEXT NOT NULL,
    filter TEXT NOT NULL,
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    matched INTEGER NOT NULL,
    at INTEGER NOT NULL
) STRICT;

CREATE TABLE operator_results (
    command INTEGER NOT NULL,
    shard INTEGER NOT NULL,
    affected INTEGER NOT NULL,
    done INTEGER NOT NULL CHECK (done IN (0, 1)),
    PRIMARY KEY (command, shard)
) STRICT, WITHOUT ROWID;
