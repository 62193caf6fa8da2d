-- Log rows that its reader is done with: shard, stretches as [origin, first row, last row, messages of that one], bound.
BEGIN IMMEDIATE;
WITH given (shard, stretches) AS (SELECT ?, ?)
DELETE FROM log WHERE rowid IN (
    SELECT l.rowid FROM given g CROSS JOIN json_each(g.stretches) p CROSS JOIN log l
    ON l.target = g.shard AND l.origin = p.value->>0 AND l.no BETWEEN p.value->>1 AND p.value->>2
    WHERE l.no < p.value->>2 OR l.count <= p.value->>3 LIMIT ?);
-- Commits: shard, number, bound.
DELETE FROM commits WHERE rowid IN (
    SELECT rowid FROM commits WHERE shard = ? AND commit_no < ? ORDER BY commit_no LIMIT ?);
-- History: shard, time, bound.
DELETE FROM history WHERE rowid IN (SELECT rowid FROM history WHERE shard = ? AND at < ? ORDER BY at LIMIT ?);
COMMIT
