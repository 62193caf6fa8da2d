-- Gives the roles of a store on PostgreSQL exactly the rights that they need: docs/postgres.md says which, and why. The
-- store's owner, or a superuser, runs it in the schema of the store, after each `budget-manager store:prepare`:
--
--   psql postgres://owner@host/database --set ON_ERROR_STOP=1 --set worker=NAME --set gateway=NAME --set operator=NAME \
--       --set writer=NAME --file rights.sql
--
-- The roles must be there (CREATE ROLE … LOGIN); what they had before on the store's tables is taken from them first. One that is
-- not named is not used.
\set QUIET on
\if :{?worker} \else \set worker '' \endif
\if :{?gateway} \else \set gateway '' \endif
\if :{?operator} \else \set operator '' \endif
\if :{?writer} \else \set writer '' \endif
BEGIN;
SELECT set_config('perkey.worker', :'worker', true), set_config('perkey.gateway', :'gateway', true),
    set_config('perkey.operator', :'operator', true), set_config('perkey.writer', :'writer', true) \g /dev/null

DO $$
DECLARE
    home constant text := current_schema();
    keeper constant oid := (SELECT relowner FROM pg_class WHERE oid = to_regclass(quote_ident(home) || '.shards'));
    given record;
    role text;
    own text;
BEGIN
    IF keeper IS NULL THEN
        RAISE EXCEPTION 'there is no store in schema % of this database', home
            USING HINT = 'make it first, with budget-manager store:prepare; or set search_path';
    END IF;
    -- Whoever may make functions and operators there could have others call them.
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', home);
    FOREACH role IN ARRAY ARRAY['worker', 'gateway', 'operator', 'writer'] LOOP
        role := current_setting('perkey.' || role);
        CONTINUE WHEN role = '';
        EXECUTE format('REVOKE ALL ON SCHEMA %I FROM %I', home, role);
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', home, role);
        FOR own IN SELECT c.relname FROM pg_class c
            WHERE c.relnamespace = home::regnamespace AND c.relowner = keeper AND c.relkind IN ('r', 'p', 'v') LOOP
            EXECUTE format('REVOKE ALL ON %I.%I FROM %I', home, own, role);
        END LOOP;
    END LOOP;

    FOR given IN SELECT * FROM (VALUES
        -- A worker runs shards and answers calls.
        ('worker', 'SELECT', 'meta, _sqlx_migrations'),
        ('worker', 'SELECT, INSERT', 'services'),
        ('worker', 'SELECT, UPDATE', 'shards'),
        ('worker', 'SELECT', 'pauses'),
        ('worker', 'SELECT, DELETE', 'perkey_intake, operator_commands, operator_open'),
        ('worker', 'SELECT, INSERT, DELETE', 'commits, history, log'),
        ('worker', 'SELECT, INSERT, UPDATE, DELETE',
            'workers, states, pending, dead_letters, timers, lanes, calls, call_counts, operator_results'),
        -- A gateway writes calls into the log, and reads what answers them; of messages that wait, only that they do.
        ('gateway', 'SELECT', 'meta, _sqlx_migrations, shards, pauses, states'),
        ('gateway', 'SELECT (shard, service, key, seq)', 'pending'),
        ('gateway', 'SELECT (shard, service, key, holds_key)', 'dead_letters'),
        ('gateway', 'SELECT, INSERT, UPDATE', 'calls, lanes, call_counts'),
        ('gateway', 'SELECT, INSERT', 'log'),
        -- An operator looks at everything, asks workers to change something, and imports.
        ('operator', 'SELECT', 'meta, _sqlx_migrations, services, shards, workers, commits, states, pending, dead_letters,
            timers, history, calls, call_counts, perkey_intake, inbox_messages, outbox_events'),
        ('operator', 'SELECT, INSERT, DELETE', 'operator_commands, operator_open, pauses'),
        ('operator', 'SELECT, DELETE', 'operator_results'),
        ('operator', 'SELECT, INSERT, UPDATE', 'lanes, imports'),
        ('operator', 'SELECT, INSERT', 'log'),
        -- A writer leaves messages.
        ('writer', 'INSERT', 'perkey_intake')
    ) AS g (name, rights, tables) WHERE current_setting('perkey.' || name) <> '' LOOP
        FOREACH own IN ARRAY regexp_split_to_array(given.tables, ',\s*') LOOP
            EXECUTE format('GRANT %s ON %I.%I TO %I', given.rights, home, own, current_setting('perkey.' || given.name));
        END LOOP;
    END LOOP;

    -- What else the store's owner has in the schema are the tables of handlers.
    FOR own IN SELECT c.relname FROM pg_class c
        WHERE c.relnamespace = home::regnamespace AND c.relowner = keeper AND c.relkind IN ('r', 'p')
            AND c.relname NOT IN ('meta', '_sqlx_migrations', 'services', 'shards', 'workers', 'commits', 'states', 'pending',
                'dead_letters', 'timers', 'log', 'lanes', 'imports', 'calls', 'call_counts', 'history', 'operator_commands',
                'operator_results', 'operator_open', 'pauses', 'perkey_intake') LOOP
        FOR given IN SELECT * FROM (VALUES ('worker', 'SELECT, INSERT, UPDATE, DELETE'), ('gateway', 'SELECT'),
            ('operator', 'SELECT')) AS g (name, rights) WHERE current_setting('perkey.' || name) <> '' LOOP
            EXECUTE format('GRANT %s ON %I.%I TO %I', given.rights, home, own, current_setting('perkey.' || given.name));
        END LOOP;
    END LOOP;
END
$$;
COMMIT;
