-- Named timers of keys; one that fires is a message of its key, and its row goes with the commit of that message's turn.
CREATE TABLE timers (
    shard INTEGER NOT NULL,
    service TEXT NOT NULL,
    key TEXT NOT NULL,
    name TEXT NOT NULL,
    due_at INTEGER NOT NULL,
    message BLOB NOT NULL,
    PRIMARY KEY (service, key, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX timers_due ON timers (shard, due_at);

DROP INDEX pending_timer;
ALTER TABLE pending DROP COLUMN name;
