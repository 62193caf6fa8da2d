-- What is due is looked up service by service, so that those of a service that is paused, or that no program has, are not
-- read whenever another's are looked for.
CREATE INDEX timers_ready ON timers (shard, service, due_at);
DROP INDEX timers_due;
CREATE INDEX pending_ready ON pending (shard, service, due_at, seq) WHERE due_at IS NOT NULL;
DROP INDEX pending_due;
-- Whether an id is that of a message that waits.
CREATE INDEX pending_id ON pending (message_id);
