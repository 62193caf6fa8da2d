-- STATE_VERSION of each service, the highest that each shard has seen.
ALTER TABLE shards ADD COLUMN code_versions TEXT NOT NULL DEFAULT '{}';
