-- STATE_VERSION of each service: of a worker's program, and the highest that each shard has seen. Programs of before write and
-- compare `code_version`, which is their sum, alone: theirs are empty here.
ALTER TABLE workers ADD COLUMN code_versions json NOT NULL DEFAULT '{}';
ALTER TABLE shards ADD COLUMN code_versions json NOT NULL DEFAULT '{}';
