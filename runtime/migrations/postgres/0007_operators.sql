-- What is paused: apart from the commands that say so, which are not kept for ever. Without a key it is the whole service.
CREATE TABLE pauses (
    service text COLLATE "C" NOT NULL,
    key text COLLATE "C",
    who text NOT NULL,
    why text NOT NULL,
    since bigint NOT NULL
);
CREATE UNIQUE INDEX pauses_scope ON pauses (service, coalesce(key, ''));

WITH told AS (
    SELECT id, who, why, at, action::json->'pause'->>'service' AS paused, action::json->'resume'->>'service' AS resumed,
        coalesce(action::json->'pause', action::json->'resume')->>'key' AS key
    FROM operator_commands WHERE action LIKE '{"pause"%' OR action LIKE '{"resume"%')
INSERT INTO pauses (service, key, who, why, since)
SELECT DISTINCT ON (p.paused, p.key) p.paused, p.key, p.who, p.why, p.at FROM told p
WHERE p.paused IS NOT NULL AND NOT EXISTS (SELECT FROM told r
    WHERE r.id > p.id AND r.resumed = p.paused AND (r.key IS NULL OR r.key IS NOT DISTINCT FROM p.key))
ORDER BY p.paused, p.key, p.id;

-- Commands that a shard has still to execute: a row goes with the commit that has done it.
CREATE TABLE operator_open (
    shard integer NOT NULL,
    command bigint NOT NULL,
    PRIMARY KEY (shard, command)
);
INSERT INTO operator_open (shard, command)
SELECT s.shard, c.id FROM shards s CROSS JOIN operator_commands c WHERE NOT EXISTS (
    SELECT FROM operator_results r WHERE r.command = c.id AND r.shard = s.shard AND r.done);

CREATE FUNCTION perkey_open_command() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO operator_open (shard, command) SELECT shard, NEW.id FROM shards;
    RETURN NULL;
END
$$;
CREATE TRIGGER perkey_open_command AFTER INSERT ON operator_commands
    FOR EACH ROW EXECUTE FUNCTION perkey_open_command();
