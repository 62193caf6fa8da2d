-- Every part is joined to the fence: parts of a WITH all run, whatever the others find.
WITH fence AS (
    UPDATE shards SET
        commit_no = $3,
        outbox_seq = coalesce($6, outbox_seq),
        last_seq = greatest(last_seq, $7),
        positions = $8::text::json,
        ahead = $9,
        watermarks = $10::text::json,
        counters = $11::text::json,
        owner = CASE WHEN $12 THEN NULL ELSE owner END,
        unclean = CASE WHEN $13 THEN 0 ELSE unclean END
    WHERE shard = $1 AND epoch = $2 AND commit_no = $3 - 1
    RETURNING shard
),
commit_row AS (
    INSERT INTO commits (shard, commit_no, epoch, at, first_seq, ids, events, prints)
    SELECT f.shard, $3, $2, $4, $5, $14, $15, $16 FROM fence f WHERE length($14) > 0 OR length($15) > 0
),
state_rows AS (
    INSERT INTO states AS there (service, key, version, state)
    SELECT r.service, r.key, r.version, r.state::json
    FROM fence, UNNEST($17::text[], $18::text[], $19::bigint[], $20::text[]) AS r (service, key, version, state)
    ON CONFLICT (service, key) DO UPDATE SET version = excluded.version, state = excluded.state
),
log_rows AS (
    INSERT INTO log (target, origin, no, count, messages)
    SELECT r.target, f.shard::text, $3, r.count, r.messages
    FROM fence f, UNNEST($21::integer[], $22::bigint[], $23::bytea[]) AS r (target, count, messages)
)
