-- Log rows that its reader has passed: shard, positions as [origin, no, messages passed], bound.
BEGIN IMMEDIATE;
WITH given (shard, positions) AS (SELECT ?, ?)
DELETE FROM log WHERE rowid IN (
    SELECT l.rowid FROM given g CROSS JOIN json_each(g.positions) p CROSS JOIN log l
    ON l.target = g.shard AND l.origin = p.value->>0 AND l.no <= p.value->>1
    WHERE l.no < p.value->>1 OR l.count <= p.value->>2 LIMIT ?);
-- Commits: shard, number, bound.
DELETE FROM commits WHERE rowid IN (
    SELECT rowid FROM commits WHERE shard = ? AND commit_no < ? ORDER BY commit_no LIMIT ?);
-- History: shard, time, bound.
DELETE FROM history WHERE rowid IN (SELECT rowid FROM history WHERE shard = ? AND at < ? ORDER BY at LIMIT ?);
COMMIT
