-- Of each of `ids` the print of what came with it, 8 bytes each, in the same order (runtime/src/message/print.rs): an id that
-- comes again with other content is told from a copy. Empty: not known, as in commits of a program of the format before.
ALTER TABLE commits ADD COLUMN prints bytea NOT NULL DEFAULT '';
-- Compressing them would cost more than writing them.
ALTER TABLE commits ALTER COLUMN prints SET STORAGE EXTERNAL;
