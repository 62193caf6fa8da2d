
-- Arguments are in the order of their places: the driver numbers them on from statement to statement.

-- Commits. The fence: only shards that still have the commit's epoch, and the number before it.
UPDATE shards SET
    commit_no = f.no,
    outbox_seq = coalesce(f.outbox_seq, shards.outbox_seq),
    last_seq = max(shards.last_seq, f.last_seq),
    positions = f.positions,
    ahead = f.ahead,
    watermarks = f.watermarks,
    counters = f.counters,
    owner = CASE WHEN f.release THEN NULL ELSE shards.owner END,
    unclean = CASE WHEN f.clean THEN 0 ELSE shards.unclean END
FROM (
    SELECT value->>0 AS shard, value->>1 AS epoch, value->>2 AS no, value->>5 AS outbox_seq, value->>6 AS last_seq,
        value->>7 AS positions, value->>8 AS counters, value->>9 AS release, value->>10 AS clean, value->>15 AS watermarks,
        coalesce(substr(?, value->>16, value->>17), x'') AS ahead
    FROM json_each(?)
) AS f
WHERE shards.shard = f.shard AND shards.epoch = f.epoch AND shards.commit_no = f.no - 1
RETURNING shard;

INSERT INTO commits (shard, commit_no, epoch, at, first_seq, ids, events, prints)
SELECT value->>0, value->>2, value->>1, value->>3, value->>4,
    coalesce(substr(?, value->>11, value->>12), x''), coalesce(substr(?, value->>13, value->>14), x''),
    coalesce(substr(?, value->>18, value->>19), x'')
FROM json_each(?) WHERE value->>12 > 0 OR value->>14 > 0;

-- States, then those forgotten.
INSERT INTO states (service, key, version, state)
SELECT value->>0, value->>1, value->>2, CAST(substr(?, value->>3, value->>4) AS TEXT) FROM json_each(?) WHERE true
ON CONFLICT (service, key) DO UPDATE SET version = excluded.version, state = excluded.state;
DELETE FROM states WHERE (service, key) IN (SELECT value->>0, value->>1 FROM json_each(?));

-- Log.
INSERT INTO log (target, origin, no, count, messages)
SELECT value->>0, value->>1, value->>2, value->>3, coalesce(substr(?, value->>4, value->>5), x'')
FROM json_each(?);

-- Pending rows written, then those settled.
INSERT INTO pending (shard, seq, service, key, kind, due_at, taken_id, message_id, taken_at, attempt, starts,
    history, message)
SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, unhex(value->>6), value->>7,
    value->>8, value->>9, value->>10, value->>11, substr(?, value->>12, value->>13)
FROM json_each(?) WHERE true
ON CONFLICT (shard, seq) DO UPDATE SET service = excluded.service, key = excluded.key, kind = excluded.kind,
    due_at = excluded.due_at, taken_id = excluded.taken_id, message_id = excluded.message_id,
    taken_at = excluded.taken_at, attempt = excluded.attempt, starts = excluded.starts,
    history = excluded.history, message = excluded.message;
DELETE FROM pending WHERE (shard, seq) IN (SELECT value->>0, value->>1 FROM json_each(?));

-- Dead letters written, then those replayed or discarded.
INSERT INTO dead_letters
    (shard, seq, service, key, taken_id, message_id, at, taken_at, error, holds_key, history, message)
SELECT value->>0, value->>1, value->>2, value->>3, unhex(value->>4), value->>5, value->>6, value->>7,
    value->>8, value->>9, value->>10, substr(?, value->>11, value->>12)
FROM json_each(?) WHERE true
ON CONFLICT (shard, seq) DO UPDATE SET service = excluded.service, key = excluded.key, taken_id = excluded.taken_id,
    message_id = excluded.message_id, at = excluded.at, taken_at = excluded.taken_at, error = excluded.error,
    holds_key = excluded.holds_key, history = excluded.history, message = excluded.message;
DELETE FROM dead_letters WHERE (shard, seq) IN (SELECT value->>0, value->>1 FROM json_each(?));

-- Timers set, then those removed.
INSERT INTO timers (shard, service, key, name, due_at, message)
SELECT value->>0, value->>1, value->>2, value->>3, value->>4, substr(?, value->>5, value->>6)
FROM json_each(?) WHERE true
ON CONFLICT (service, key, name) DO UPDATE SET due_at = excluded.due_at, message = excluded.message;
DELETE FROM timers WHERE (service, key, name) IN (SELECT value->>0, value->>1, value->>2 FROM json_each(?));

-- Outcomes of calls.
UPDATE calls SET ended = r.ended, code = r.code, body = r.body
FROM (
    SELECT unhex(value->>0) AS id, value->>1 AS ended, value->>2 AS code,
        coalesce(substr(?, value->>3, value->>4), x'') AS body
    FROM json_each(?)
) AS r
WHERE calls.id = r.id;

-- History, and results of operator commands.
INSERT INTO history (shard, service, key, id, at, attempt, generation, what, error)
SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7, value->>8
FROM json_each(?);
INSERT INTO operator_results (command, shard, affected, done)
SELECT value->>0, value->>1, value->>2, value->>3 FROM json_each(?) WHERE true
ON CONFLICT (command, shard) DO UPDATE SET affected = affected + excluded.affected, done = max(done, excluded.done);
DELETE FROM operator_open WHERE (shard, command) IN (SELECT value->>1, value->>0 FROM json_each(?) WHERE value->>3);
