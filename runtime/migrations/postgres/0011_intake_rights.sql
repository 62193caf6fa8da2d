-- Functions of the store find what they name where the store is, whatever the session that runs them has made: with a path that
-- does not say where temporary tables come, these come first.
DO $do$
DECLARE
    home constant text := (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = 'perkey_intake'::regclass);
BEGIN
    EXECUTE format($sql$
        CREATE OR REPLACE FUNCTION %1$I.perkey_shard(key text) RETURNS integer
        LANGUAGE plpgsql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            shards constant bigint := (SELECT m.value::bigint FROM %1$I.meta m WHERE m.name = 'shards');
        BEGIN
            IF shards IS NULL THEN
                RAISE EXCEPTION 'this store has no shards yet' USING HINT = 'start a worker once';
            END IF;
            RETURN (%1$I.perkey_murmur2(convert_to(key, 'UTF8')) & 2147483647) %% shards;
        END
        $$
    $sql$, home);
    -- With its owner's rights, so for one table alone: the columns of another's could bring casts that run with them.
    EXECUTE format($sql$
        CREATE OR REPLACE FUNCTION %1$I.perkey_intake_shard() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
            IF TG_RELID <> %2$L::regclass THEN
                RAISE EXCEPTION 'perkey_intake_shard() is for perkey_intake alone';
            END IF;
            -- A missing key is refused by its own column.
            NEW.shard := coalesce(%1$I.perkey_shard(NEW.key), 0);
            RETURN NEW;
        END
        $$
    $sql$, home, format('%I.perkey_intake', home));
    EXECUTE format($sql$
        CREATE OR REPLACE FUNCTION %1$I.perkey_open_command() RETURNS trigger
        LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
            INSERT INTO %1$I.operator_open (shard, command) SELECT s.shard, NEW.id FROM %1$I.shards s;
            RETURN NULL;
        END
        $$
    $sql$, home);
END
$do$;
-- A trigger needs no right to its function once it is made; nobody else is to make one with it.
REVOKE EXECUTE ON FUNCTION perkey_intake_shard() FROM PUBLIC;

-- No message is larger, whatever ingress.message_bytes_max says (its upper bound). Rows that are there are not looked at, which
-- would take as long as there are many, and a larger one is taken as a dead letter.
ALTER TABLE perkey_intake ADD CONSTRAINT perkey_intake_bytes
    CHECK (octet_length(payload)::bigint + octet_length(headers::text) <= 268435456) NOT VALID;
