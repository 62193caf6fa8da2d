-- How often the process ended, at most, while a message was being handled: see docs/operations.md, messages that kill.
ALTER TABLE pending ADD COLUMN starts INTEGER NOT NULL DEFAULT 0;
