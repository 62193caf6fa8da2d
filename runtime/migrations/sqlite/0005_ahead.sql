-- What is done above `positions` (runtime/src/store/layout.rs has its form); empty as a rule. Whatever it says is done for
-- ever: a program of the format before, which leaves it as it is, does no harm.
ALTER TABLE shards ADD COLUMN ahead BLOB NOT NULL DEFAULT x'';
