//! Reads for a shard what its ledger asks the store for, so that the ledger never waits.
//! In: questions. Out: the store's answers. While the store cannot be read, questions wait.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tracing::warn;

use super::ledger::Action;
use super::shard::ShardMessage;
use crate::clock::sleep;
use crate::message::ShardNo;
use crate::store::{StoreError, StoreFuture};
use crate::supervision::Env;

/// Pause after the store could not be read.
const AGAIN: Duration = Duration::from_millis(100);

/// What a reader is asked.
pub(crate) enum Question {
    /// A question of the ledger's.
    Ledger(Action),
    /// Which operator commands are open for the shard.
    Commands,
}

/// One of a shard's readers: keys are loaded by one, everything that may take longer is read by another.
pub(crate) struct Reader;

/// What it holds.
pub(crate) struct ReaderState {
    env: Arc<Env>,
    shard_no: ShardNo,
    shard: ActorRef<ShardMessage>,
}

impl Actor for Reader {
    type Msg = Question;
    type State = ReaderState;
    type Arguments = (Arc<Env>, ShardNo, ActorRef<ShardMessage>);

    async fn pre_start(
        &self,
        _: ActorRef<Question>,
        (env, shard_no, shard): Self::Arguments,
    ) -> Result<ReaderState, ActorProcessingErr> {
        Ok(ReaderState { env, shard_no, shard })
    }

    async fn handle(
        &self,
        _: ActorRef<Question>,
        question: Question,
        state: &mut ReaderState,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(answer) = state.answer(question).await? {
            state.shard.cast(answer)?;
        }
        Ok(())
    }
}

impl ReaderState {
    async fn answer(&self, question: Question) -> Result<Option<ShardMessage>, StoreError> {
        let (store, shard) = (&self.env.store, self.shard_no);
        let action = match question {
            Question::Ledger(action) => action,
            Question::Commands => {
                let commands = store.queries().open_commands(shard).await.unwrap_or_default();
                return Ok((!commands.is_empty()).then_some(ShardMessage::Commands(commands)));
            }
        };
        Ok(match action {
            Action::Load(slots, keys) => {
                let rows = self.ask(|| store.load(shard, keys.clone())).await?;
                Some(ShardMessage::Loaded(slots, rows))
            }
            Action::FetchDue(limit) => {
                let due = self.ask(|| store.due(shard, self.env.clock.now(), limit)).await?;
                Some(ShardMessage::Due(due))
            }
            Action::FetchOrphans(after, limit) => {
                let keys = self.ask(|| store.orphans(shard, after.clone(), limit)).await?;
                Some(ShardMessage::Orphans(keys))
            }
            Action::Page(slot, token, key, after, limit) => {
                let rows = self.ask(|| store.page(shard, key.clone(), after, limit)).await?;
                Some(ShardMessage::Paged(slot, token, rows))
            }
            Action::FindDead(command, filter, limit) => {
                let letters = self.ask(|| store.dead(shard, filter.clone(), limit)).await?;
                Some(ShardMessage::DeadFound(command, letters))
            }
            Action::Retake(epoch) => {
                let taken = self.ask(|| store.retake(shard, epoch)).await;
                Some(ShardMessage::Retaken(taken))
            }
            Action::Trim(trim) => {
                // What is not removed now is removed the next time.
                if let Err(error) = store.trim(shard, trim).await {
                    warn!(shard, %error, "store could not be trimmed");
                }
                None
            }
            Action::Run(..)
            | Action::Spawn(_)
            | Action::CommitReady
            | Action::Commit(_)
            | Action::CommitLater(..)
            | Action::Credit(..)
            | Action::Acknowledge(..)
            | Action::Publish(_)
            | Action::Drained
            | Action::Stop(_) => None,
        })
    }

    /// Asks until the store answers; an outage is waited for.
    async fn ask<'a, T>(&'a self, question: impl Fn() -> StoreFuture<'a, T>) -> Result<T, StoreError> {
        loop {
            match question().await {
                Err(StoreError::Unavailable(error)) => {
                    warn!(shard = self.shard_no, error, "store cannot be read, trying again");
                    sleep(AGAIN).await;
                }
                answer => return answer,
            }
        }
    }
}
