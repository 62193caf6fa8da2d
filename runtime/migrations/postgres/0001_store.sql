-- Texts compare byte by byte, as the program does. In texts that a message brings (ids, keys, errors) U+0000 is
-- written as U+241B and 0, and U+241B as itself twice: PostgreSQL's text holds no U+0000.

-- What a store records once: the key that ids are hashed under (hex), the number of shards.
CREATE TABLE meta (
    name text COLLATE "C" NOT NULL PRIMARY KEY,
    value text NOT NULL
);

-- A service's number is part of every id taken, so it is never used again.
CREATE TABLE services (
    number integer NOT NULL PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE
);

-- The truth about a shard. `positions`: source -> origin -> {no, index}. `watermarks`: sink -> outbox_seq.
-- It is updated with every commit: room on the page keeps the new version beside the old one.
CREATE TABLE shards (
    shard integer NOT NULL PRIMARY KEY,
    owner text COLLATE "C",
    epoch bigint NOT NULL DEFAULT 0,
    commit_no bigint NOT NULL DEFAULT 0,
    outbox_seq bigint NOT NULL DEFAULT 0,
    last_seq bigint NOT NULL DEFAULT 0,
    unclean bigint NOT NULL DEFAULT 0,
    code_version bigint NOT NULL DEFAULT 0,
    positions json NOT NULL DEFAULT '{}',
    watermarks json NOT NULL DEFAULT '{}',
    counters json NOT NULL DEFAULT '{}'
) WITH (fillfactor = 20, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_cost_delay = 0);

-- Workers that gave a sign of life; one whose time has passed owns nothing that others may not take.
CREATE TABLE workers (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    address text NOT NULL,
    version text NOT NULL,
    code_version bigint NOT NULL,
    draining boolean NOT NULL,
    -- Shards that failed on it too often and that it leaves to others for a while.
    cooling integer[] NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 20, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

-- One row per commit. `ids`: 22 bytes each. `events`: each its service's number (2 bytes, little endian),
-- its cause (16), the length of its frame (4, little endian), its frame. The views below expand both.
CREATE TABLE commits (
    shard integer NOT NULL,
    commit_no bigint NOT NULL,
    epoch bigint NOT NULL,
    at bigint NOT NULL,
    first_seq bigint NOT NULL,
    ids bytea NOT NULL,
    events bytea NOT NULL,
    PRIMARY KEY (shard, commit_no)
);
-- Compressing them would cost more than writing them.
ALTER TABLE commits ALTER COLUMN ids SET STORAGE EXTERNAL, ALTER COLUMN events SET STORAGE EXTERNAL;

CREATE TABLE states (
    service text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    state json NOT NULL,
    PRIMARY KEY (service, key)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);

-- Messages that wait. `name` is a timer's; a timer has no `seq` until it fires.
CREATE TABLE pending (
    shard integer NOT NULL,
    seq bigint,
    service text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    kind text NOT NULL,
    name text COLLATE "C",
    due_at bigint,
    taken_id bytea NOT NULL,
    message_id text COLLATE "C" NOT NULL,
    taken_at bigint NOT NULL,
    attempt bigint NOT NULL,
    history text NOT NULL,
    message bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX pending_key ON pending (shard, service, key, seq, due_at);
CREATE UNIQUE INDEX pending_timer ON pending (service, key, name) WHERE name IS NOT NULL;
CREATE INDEX pending_due ON pending (shard, due_at, seq) WHERE due_at IS NOT NULL;
CREATE INDEX pending_id ON pending (message_id);
-- Last: of indexes that cost the same, as all do while the table is empty, the planner takes the youngest, and a plan
-- made then is kept.
CREATE UNIQUE INDEX pending_seq ON pending (shard, seq);

CREATE TABLE dead_letters (
    shard integer NOT NULL,
    seq bigint NOT NULL,
    service text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    taken_id bytea NOT NULL,
    message_id text COLLATE "C" NOT NULL,
    at bigint NOT NULL,
    taken_at bigint NOT NULL,
    error text NOT NULL,
    holds_key boolean NOT NULL,
    history text NOT NULL,
    message bytea NOT NULL
);
CREATE INDEX dead_letters_key ON dead_letters (shard, key, seq);
CREATE INDEX dead_letters_holding ON dead_letters (shard, service, key) WHERE holds_key;
CREATE INDEX dead_letters_id ON dead_letters (message_id);
ALTER TABLE dead_letters ADD PRIMARY KEY (shard, seq);

-- Faults, restarts and moves of dead letters, for `explain`; `no` keeps the order of lines of one instant.
CREATE TABLE history (
    no bigint GENERATED ALWAYS AS IDENTITY,
    shard integer NOT NULL,
    service text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    at bigint NOT NULL,
    attempt bigint NOT NULL,
    generation bigint NOT NULL,
    what text NOT NULL,
    error text NOT NULL
);
CREATE INDEX history_id ON history (id);
CREATE INDEX history_key ON history (key);
CREATE INDEX history_at ON history (shard, at);

-- The embedded log: one row per commit (or outside batch) and target shard.
CREATE TABLE log (
    target integer NOT NULL,
    origin text COLLATE "C" NOT NULL,
    no bigint NOT NULL,
    count bigint NOT NULL,
    messages bytea NOT NULL,
    PRIMARY KEY (target, origin, no)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.2);
ALTER TABLE log ALTER COLUMN messages SET STORAGE EXTERNAL;

-- Last number of each outside writer's lane of the log; its row is locked until the numbers it gave are visible.
CREATE TABLE lanes (
    origin text COLLATE "C" NOT NULL PRIMARY KEY,
    no bigint NOT NULL
);

-- How far each import is; written with the messages that it counts.
CREATE TABLE imports (
    service text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    lines bigint NOT NULL,
    messages bigint NOT NULL,
    rejects bigint NOT NULL,
    rejects_bytes bigint NOT NULL,
    lines_hash text NOT NULL,
    at bigint NOT NULL,
    PRIMARY KEY (service, source)
);

-- What operators asked for: also the audit.
CREATE TABLE operator_commands (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    action text NOT NULL,
    filter text NOT NULL,
    who text NOT NULL,
    why text NOT NULL,
    matched bigint NOT NULL,
    at bigint NOT NULL
);

CREATE TABLE operator_results (
    command bigint NOT NULL,
    shard integer NOT NULL,
    affected bigint NOT NULL,
    done boolean NOT NULL,
    PRIMARY KEY (command, shard)
);

-- ---- For whoever looks with SQL.

-- An unsigned number of `bytes` bytes, little endian.
CREATE FUNCTION perkey_number(data bytea, at integer, bytes integer) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT sum(get_byte(data, at + i)::bigint << (8 * i))::bigint FROM generate_series(0, bytes - 1) i
$$;

-- Bytes as text; NULL when they are none.
CREATE FUNCTION perkey_text(data bytea) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    RETURN convert_from(data, 'UTF8');
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$$;

-- A frame: version (1), time (8), lengths of id, key, type and source (2 each), of headers and payload (4 each),
-- then these in this order. A header: lengths of name (2) and value (4), name, value.
CREATE FUNCTION perkey_frame(frame bytea, OUT id text, OUT key text, OUT type text, OUT source text,
    OUT "time" timestamptz, OUT headers json, OUT payload text, OUT payload_bytes bytea)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    at integer := 25;
    pieces text[] := '{}';
    size integer;
    stop integer;
    name text;
    named jsonb := '{}';
BEGIN
    IF length(frame) < 25 OR get_byte(frame, 0) <> 1 THEN
        RETURN;
    END IF;
    FOR i IN 0..3 LOOP
        size := perkey_number(frame, 9 + 2 * i, 2);
        pieces := pieces || perkey_text(substring(frame FROM at + 1 FOR size));
        at := at + size;
    END LOOP;
    id := pieces[1];
    key := pieces[2];
    type := pieces[3];
    source := pieces[4];
    "time" := to_timestamp(nullif(perkey_number(frame, 1, 8), 0) / 1000.0);
    stop := at + perkey_number(frame, 17, 4);
    WHILE at + 6 <= stop LOOP
        size := perkey_number(frame, at, 2);
        name := perkey_text(substring(frame FROM at + 7 FOR size));
        named := named || jsonb_build_object(coalesce(name, ''),
            perkey_text(substring(frame FROM at + 7 + size FOR perkey_number(frame, at + 2, 4)::integer)));
        at := at + 6 + size + perkey_number(frame, at + 2, 4);
    END LOOP;
    headers := named;
    payload_bytes := substring(frame FROM stop + 1);
    payload := perkey_text(payload_bytes);
END
$$;

-- The events of a commit, numbered from `first`.
CREATE FUNCTION perkey_events(events bytea, first bigint)
RETURNS TABLE (seq bigint, service integer, cause text, frame bytea)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    -- Read once, not with every byte.
    data bytea := events || ''::bytea;
    at integer := 0;
    size integer;
BEGIN
    seq := first;
    WHILE at + 22 <= length(data) LOOP
        service := perkey_number(data, at, 2);
        cause := encode(substring(data FROM at + 3 FOR 16), 'hex');
        size := perkey_number(data, at + 18, 4);
        frame := substring(data FROM at + 23 FOR size);
        RETURN NEXT;
        seq := seq + 1;
        at := at + 22 + size;
    END LOOP;
END
$$;

-- A row per id that a commit took. `id`: a UUID's own 16 bytes in hex, any other id's keyed hash; `key_hash`: the
-- key's murmur2.
CREATE VIEW inbox_messages AS
SELECT c.shard, c.commit_no, c.epoch, to_timestamp(c.at / 1000.0) AS at,
    encode(substring(i.id FROM 1 FOR 16), 'hex') AS id, perkey_number(i.id, 16, 4) AS key_hash, s.name AS service
FROM commits c
CROSS JOIN LATERAL (
    SELECT substring(c.ids FROM 22 * n + 1 FOR 22) FROM generate_series(0, length(c.ids) / 22 - 1) n
) AS i (id)
LEFT JOIN services s ON s.number = perkey_number(i.id, 20, 2);

-- A row per event of a commit. `cause`: the id (as in `inbox_messages`) of the message whose turn emitted it.
CREATE VIEW outbox_events AS
SELECT c.shard, e.seq, c.commit_no, c.epoch, to_timestamp(c.at / 1000.0) AS at, s.name AS service, e.cause,
    f.id, f.key, f.type, f.source, f.time, f.headers, f.payload, f.payload_bytes
FROM commits c
CROSS JOIN LATERAL perkey_events(c.events, c.first_seq) e
CROSS JOIN LATERAL perkey_frame(e.frame) f
LEFT JOIN services s ON s.number = e.service
WHERE length(c.events) > 0;

-- ---- Messages from whoever writes into this database: a row inserted in an application's own transaction is a message
-- as soon as that commits. The commit that takes it deletes it.

-- Kafka's murmur2 (`org.apache.kafka.common.utils.Utils.murmur2`), unsigned.
CREATE FUNCTION perkey_murmur2(data bytea) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    mask constant bigint := 4294967295;
    m constant bigint := 1540483477;
    size constant integer := length(data);
    at integer := 0;
    h bigint := 2538058380 # size::bigint;
    k bigint;
BEGIN
    WHILE at + 4 <= size LOOP
        k := get_byte(data, at)::bigint | (get_byte(data, at + 1)::bigint << 8)
            | (get_byte(data, at + 2)::bigint << 16) | (get_byte(data, at + 3)::bigint << 24);
        k := (k * m) & mask;
        k := k # (k >> 24);
        h := ((h * m) & mask) # ((k * m) & mask);
        at := at + 4;
    END LOOP;
    IF at < size THEN
        FOR i IN REVERSE size - at - 1..0 LOOP
            h := h # (get_byte(data, at + i)::bigint << (8 * i));
        END LOOP;
        h := (h * m) & mask;
    END IF;
    h := h # (h >> 13);
    h := (h * m) & mask;
    RETURN h # (h >> 15);
END
$$;

-- The shard of a key: as Kafka's Java producer chooses a partition.
CREATE FUNCTION perkey_shard(key text) RETURNS integer
LANGUAGE plpgsql STABLE STRICT SET search_path FROM CURRENT AS $$
DECLARE
    shards constant bigint := (SELECT value::bigint FROM meta WHERE name = 'shards');
BEGIN
    IF shards IS NULL THEN
        RAISE EXCEPTION 'this store has no shards yet' USING HINT = 'start a worker once';
    END IF;
    RETURN (perkey_murmur2(convert_to(key, 'UTF8')) & 2147483647) % shards;
END
$$;

CREATE TABLE perkey_intake (
    no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Filled by the trigger, whatever is given.
    shard integer NOT NULL,
    -- Without one, the settings' bindings choose by source (`intake`) and type.
    service text COLLATE "C" CHECK (octet_length(service) BETWEEN 1 AND 256),
    key text COLLATE "C" NOT NULL CHECK (octet_length(key) BETWEEN 1 AND 256),
    -- A message with an id that was taken before is dropped.
    id text COLLATE "C" NOT NULL DEFAULT gen_random_uuid()::text CHECK (octet_length(id) BETWEEN 1 AND 256),
    type text COLLATE "C" NOT NULL CHECK (octet_length(type) BETWEEN 1 AND 256),
    headers json NOT NULL DEFAULT '{}' CHECK (json_typeof(headers) = 'object'),
    payload text NOT NULL DEFAULT '',
    at timestamptz NOT NULL DEFAULT clock_timestamp() CHECK (isfinite(at))
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE UNIQUE INDEX perkey_intake_shard ON perkey_intake (shard, no);

-- With its owner's rights: who may insert needs no right to read anything.
CREATE FUNCTION perkey_intake_shard() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    -- A missing key is refused by its own column.
    NEW.shard := coalesce(perkey_shard(NEW.key), 0);
    RETURN NEW;
END
$$;
CREATE TRIGGER perkey_intake_shard BEFORE INSERT OR UPDATE ON perkey_intake
    FOR EACH ROW EXECUTE FUNCTION perkey_intake_shard();
