-- What is paused: apart from the commands that say so, which are not kept for ever. Without a key it is the whole service.
CREATE TABLE pauses (
    service TEXT NOT NULL,
    key TEXT,
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    since INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX pauses_scope ON pauses (service, coalesce(key, ''));

WITH told AS (
    SELECT id, who, why, at, action->'pause'->>'service' AS paused, action->'resume'->>'service' AS resumed,
        coalesce(action->'pause', action->'resume')->>'key' AS key
    FROM operator_commands WHERE action LIKE '{"pause"%' OR action LIKE '{"resume"%')
INSERT INTO pauses (service, key, who, why, since)
SELECT p.paused, p.key, p.who, p.why, p.at FROM told p
WHERE p.paused IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM told r
        WHERE r.id > p.id AND r.resumed = p.paused AND (r.key IS NULL OR r.key IS p.key))
    AND p.id = (SELECT min(q.id) FROM told q WHERE q.paused = p.paused AND q.key IS p.key
        AND NOT EXISTS (SELECT 1 FROM told r
            WHERE r.id > q.id AND r.resumed = q.paused AND (r.key IS NULL OR r.key IS q.key)));

-- Commands that a shard has still to execute: a row goes with the commit that has done it.
CREATE TABLE operator_open (
    shard INTEGER NOT NULL,
    command INTEGER NOT NULL,
    PRIMARY KEY (shard, command)
) STRICT, WITHOUT ROWID;
INSERT INTO operator_open (shard, command)
SELECT s.shard, c.id FROM shards s CROSS JOIN operator_commands c WHERE NOT EXISTS (
    SELECT 1 FROM operator_results r WHERE r.command = c.id AND r.shard = s.shard AND r.done = 1);

CREATE TRIGGER operator_opened AFTER INSERT ON operator_commands
BEGIN
    INSERT INTO operator_open (shard, command) SELECT shard, NEW.id FROM shards;
END;
