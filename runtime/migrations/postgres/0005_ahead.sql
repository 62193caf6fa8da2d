-- What is done above `positions` (runtime/src/store/layout.rs has its form); empty as a rule. Whatever it says is done for
-- ever: a program of the format before, which leaves it as it is, does no harm.
ALTER TABLE shards ADD COLUMN ahead bytea NOT NULL DEFAULT '';
-- With the row, as long as that fits a page: it is written with every commit.
ALTER TABLE shards ALTER COLUMN ahead SET STORAGE MAIN;
