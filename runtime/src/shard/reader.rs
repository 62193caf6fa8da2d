//! Reads for a shard what its ledger asks the store for, so that the ledger never waits.
//! In: questions. Out: the store's answers. While the store cannot be read, questions wait.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tracing::warn;

use super::env::Env;
use super::messages::{Question, ShardMessage};
use crate::clock::sleep;
use crate::ledger::protocol::Action;
use crate::message::ShardNo;
use crate::store::query::{DeadFilter, Strange};
use crate::store::{DeadPlace, StoreError, StoreFuture, Trim};

/// Pause after the store could not be read.
const AGAIN: Duration = Duration::from_millis(100);

/// One of a shard's readers: keys are loaded by one, everything that may take longer is read by another. What became of a
/// commit is asked by a third, as the whole shard waits for that.
pub(crate) struct Reader;

/// What it holds.
pub(crate) struct ReaderState {
    env: Arc<Env>,
    shard_no: ShardNo,
    shard: ActorRef<ShardMessage>,
    /// Dead letters that can be read at once in the time that a statement has.
    letters: usize,
    /// Commands that this program does not understand.
    strange: Vec<i64>,
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
        Ok(ReaderState { env, shard_no, shard, letters: usize::MAX, strange: Vec::new() })
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
    async fn answer(&mut self, question: Question) -> Result<Option<ShardMessage>, StoreError> {
        let env = Arc::clone(&self.env);
        let (store, shard) = (&env.store, self.shard_no);
        let action = match question {
            Question::Ledger(action) => action,
            Question::Commands => return Ok(self.commands().await),
        };
        Ok(match action {
            Action::Load(slots, keys) => {
                let rows = self.ask(|| store.load(shard, keys.clone())).await?;
                Some(ShardMessage::Loaded(slots, rows))
            }
            Action::Check(places, ids) => {
                let known = self.ask(|| store.known(shard, ids.clone())).await?;
                Some(ShardMessage::Checked(places, known))
            }
            Action::FindOld(after, before) => {
                let found = self.ask(|| store.old(shard, after, before)).await?;
                Some(ShardMessage::OldFound(found))
            }
            Action::FetchDue(runnable, limit) => {
                let due = self.ask(|| store.due(shard, self.env.clock.now(), runnable.clone(), limit)).await?;
                Some(ShardMessage::Due(due))
            }
            Action::FetchOrphans(runnable, after, limit) => {
                let keys = self.ask(|| store.orphans(shard, runnable.clone(), after.clone(), limit)).await?;
                Some(ShardMessage::Orphans(keys))
            }
            Action::FetchTimers(runnable, limit) => {
                let due = self.ask(|| store.timers(shard, self.env.clock.now(), runnable.clone(), limit)).await?;
                Some(ShardMessage::Timers(due))
            }
            Action::FetchSchedules => {
                let timers = self.ask(|| store.schedules(shard)).await?;
                Some(ShardMessage::Schedules(timers))
            }
            Action::Page(slot, token, key, after, limit) => {
                let rows = self.ask(|| store.page(shard, key.clone(), after, limit)).await?;
                Some(ShardMessage::Paged(slot, token, rows))
            }
            Action::FindDead(command, filter, after, limit) => Some(self.dead(command, (filter, after), limit).await),
            Action::FindService(command, service, limit) => {
                let found = self.ask(|| store.of_service(shard, service.clone(), limit)).await?;
                Some(ShardMessage::ServiceFound(command, found))
            }
            Action::Retake(epoch) => {
                let taken = self.ask(|| store.retake(shard, epoch)).await;
                Some(ShardMessage::Retaken(taken))
            }
            Action::Trim(trim) => {
                self.trim(trim).await;
                None
            }
            Action::Run(..)
            | Action::Spawn(_)
            | Action::AskPermit(..)
            | Action::PermitEnded(..)
            | Action::CommitReady
            | Action::Commit(_)
            | Action::CommitLater(..)
            | Action::Credit(..)
            | Action::Room(..)
            | Action::Acknowledge(..)
            | Action::Publish(_)
            | Action::Drained
            | Action::Stop(_) => None,
        })
    }

    /// Removes what nobody needs any more. What is not removed now is removed the next time.
    async fn trim(&self, trim: Trim) {
        let shard = self.shard_no;
        if let Err(error) = self.env.store.trim(shard, trim).await {
            warn!(shard, %error, "store could not be trimmed");
        }
    }

    /// Commands that are open. It is asked again soon: what fails now is only said. One that a newer program recorded stays
    /// open, and does not keep this one from those that it understands: it is passed over, and said once.
    async fn commands(&mut self) -> Option<ShardMessage> {
        match self.env.store.queries().open_commands(self.shard_no, self.strange.clone()).await {
            Ok(open) => {
                let (shard, mut commands) = (self.shard_no, Vec::new());
                for command in open {
                    match command {
                        Ok(command) => commands.push(command),
                        Err(Strange { id, error }) => {
                            warn!(shard, command = id, error, "an operator's command is not understood, it stays open");
                            self.strange.push(id);
                        }
                    }
                }
                (!commands.is_empty()).then_some(ShardMessage::Commands(commands))
            }
            Err(error) => {
                warn!(shard = self.shard_no, %error, "operators' commands cannot be read, trying again");
                None
            }
        }
    }

    /// Dead letters may be large: fewer are asked for after a read that failed, more again after one that did not.
    async fn dead(
        &mut self,
        command: i64,
        (filter, after): (DeadFilter, Option<DeadPlace>),
        most: usize,
    ) -> ShardMessage {
        let (store, shard) = (Arc::clone(&self.env.store), self.shard_no);
        loop {
            let limit = self.letters.clamp(1, most);
            match store.dead(shard, filter.clone(), after.clone(), limit).await {
                Ok(letters) => {
                    self.letters = limit.saturating_mul(2);
                    return ShardMessage::DeadFound(command, letters);
                }
                Err(StoreError::Unavailable(error)) => {
                    warn!(shard, limit, error, "dead letters cannot be read, trying again with fewer");
                    self.letters = limit / 2;
                    sleep(AGAIN).await;
                }
                Err(error) => {
                    warn!(shard, command, %error, "dead letters cannot be read: the command ends here");
                    return ShardMessage::DeadRefused(command);
                }
            }
        }
    }

    /// Asks until the store answers; an outage is waited for.
    async fn ask<'a, T>(&'a self, question: impl Fn() -> StoreFuture<'a, T>) -> Result<T, StoreError> {
        let mut failed = false;
        loop {
            match question().await {
                Err(StoreError::Unavailable(error) | StoreError::Refused(error)) => {
                    warn!(shard = self.shard_no, error, "store cannot be read, trying again");
                    self.env.troubles.set_unread(self.shard_no, Some(error));
                    failed = true;
                    sleep(AGAIN).await;
                }
                answer => {
                    if failed {
                        self.env.troubles.set_unread(self.shard_no, None);
                    }
                    return answer;
                }
            }
        }
    }
}
