-- Rows to delete are looked up one by one (OFFSET 0 keeps the look-up whole): as a join, a plan made while the table was
-- empty would walk through all of the shard's rows when it is not.
, pending_rows AS (
    INSERT INTO pending
        (shard, seq, service, key, kind, due_at, taken_id, message_id, taken_at, attempt, starts, history, message)
    SELECT f.shard, r.*
    FROM fence f, UNNEST($24::bigint[], $25::text[], $26::text[], $27::text[], $28::bigint[], $29::bytea[],
        $30::text[], $31::bigint[], $32::bigint[], $33::bigint[], $34::text[], $35::bytea[]) AS r
    ON CONFLICT (shard, seq) DO UPDATE SET service = excluded.service, key = excluded.key, kind = excluded.kind,
        due_at = excluded.due_at, taken_id = excluded.taken_id, message_id = excluded.message_id,
        taken_at = excluded.taken_at, attempt = excluded.attempt, starts = excluded.starts,
        history = excluded.history, message = excluded.message
),
settled_rows AS (
    DELETE FROM pending WHERE ctid = ANY (ARRAY(
        SELECT there.ctid FROM fence f CROSS JOIN UNNEST($36::bigint[]) AS r (seq)
        CROSS JOIN LATERAL (SELECT p.ctid FROM pending p WHERE p.shard = f.shard AND p.seq = r.seq OFFSET 0) there))
),
dead_rows AS (
    INSERT INTO dead_letters
        (shard, seq, service, key, taken_id, message_id, at, taken_at, error, holds_key, history, message)
    SELECT f.shard, r.*
    FROM fence f, UNNEST($37::bigint[], $38::text[], $39::text[], $40::bytea[], $41::text[], $42::bigint[],
        $43::bigint[], $44::text[], $45::boolean[], $46::text[], $47::bytea[]) AS r
    ON CONFLICT (shard, seq) DO UPDATE SET service = excluded.service, key = excluded.key,
        taken_id = excluded.taken_id, message_id = excluded.message_id, at = excluded.at,
        taken_at = excluded.taken_at, error = excluded.error, holds_key = excluded.holds_key,
        history = excluded.history, message = excluded.message
),
undead_rows AS (
    DELETE FROM dead_letters WHERE ctid = ANY (ARRAY(
        SELECT there.ctid FROM fence f CROSS JOIN UNNEST($48::bigint[]) AS r (seq)
        CROSS JOIN LATERAL (SELECT d.ctid FROM dead_letters d WHERE d.shard = f.shard AND d.seq = r.seq OFFSET 0) there))
),
history_rows AS (
    INSERT INTO history (shard, service, key, id, at, attempt, generation, what, error)
    SELECT f.shard, r.*
    FROM fence f, UNNEST($49::text[], $50::text[], $51::text[], $52::bigint[], $53::bigint[], $54::bigint[],
        $55::text[], $56::text[]) AS r
),
result_rows AS (
    INSERT INTO operator_results AS there (command, shard, affected, done)
    SELECT r.command, f.shard, r.affected, r.done
    FROM fence f, UNNEST($57::bigint[], $58::bigint[], $59::boolean[]) AS r (command, affected, done)
    ON CONFLICT (command, shard) DO UPDATE
        SET affected = there.affected + excluded.affected, done = there.done OR excluded.done
),
closed_rows AS (
    DELETE FROM operator_open WHERE ctid = ANY (ARRAY(
        SELECT there.ctid FROM fence f CROSS JOIN UNNEST($57::bigint[], $59::boolean[]) AS r (command, done)
        CROSS JOIN LATERAL (SELECT o.ctid FROM operator_open o
            WHERE o.shard = f.shard AND o.command = r.command AND r.done OFFSET 0) there))
)
