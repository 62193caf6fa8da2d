-- Named timers of keys; one that fires is a message of its key, and its row goes with the commit of that message's turn.
CREATE TABLE timers (
    shard integer NOT NULL,
    service text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    due_at bigint NOT NULL,
    message bytea NOT NULL,
    PRIMARY KEY (service, key, name)
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX timers_due ON timers (shard, due_at);

ALTER TABLE pending DROP COLUMN name, ALTER COLUMN seq SET NOT NULL;
