-- How many idempotency keys each tenant has in the store, by about when their time is over: counted as they come, forgotten
-- with that time. By the lane that their calls were written into, whose writers wait for each other anyway.
CREATE TABLE call_counts (
    tenant TEXT NOT NULL,
    until INTEGER NOT NULL,
    lane TEXT NOT NULL,
    records INTEGER NOT NULL,
    PRIMARY KEY (tenant, until, lane)
) STRICT, WITHOUT ROWID;
INSERT INTO call_counts (tenant, until, lane, records)
SELECT tenant, (expires_at / 3600000 + 1) * 3600000, 'before', count(*) FROM calls GROUP BY 1, 2;
