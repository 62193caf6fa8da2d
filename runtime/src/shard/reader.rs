//! The reader, which puts a ledger's questions to the store, so that the ledger never waits.
//! In: questions. Out: the store's answers. While the store cannot be read, questions wait.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tracing::warn;

use super::env::Env;
use super::messages::{ReaderMessage, ShardMessage};
use crate::clock::sleep;
use crate::ledger::protocol::{Answer, Event, Question};
use crate::message::ShardNo;
use crate::store::StoreError;
use crate::store::query::Strange;

/// The pause after the store could not be read.
const AGAIN: Duration = Duration::from_millis(100);

/// One of a shard's readers: one loads keys, another one reads everything that may take longer, and a third one asks
/// for the outcome of a commit, because the whole shard waits for that.
pub(crate) struct Reader;

/// The reader's state.
pub(crate) struct ReaderState {
    env: Arc<Env>,
    shard_no: ShardNo,
    shard: ActorRef<ShardMessage>,
    /// The number of dead letters that one statement can read in its time.
    letters: usize,
    /// Commands that this program does not understand.
    strange: Vec<i64>,
}

impl Actor for Reader {
    type Msg = ReaderMessage;
    type State = ReaderState;
    type Arguments = (Arc<Env>, ShardNo, ActorRef<ShardMessage>);

    async fn pre_start(
        &self,
        _: ActorRef<ReaderMessage>,
        (env, shard_no, shard): Self::Arguments,
    ) -> Result<ReaderState, ActorProcessingErr> {
        Ok(ReaderState { env, shard_no, shard, letters: usize::MAX, strange: Vec::new() })
    }

    async fn handle(
        &self,
        _: ActorRef<ReaderMessage>,
        asked: ReaderMessage,
        state: &mut ReaderState,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(answer) = state.answer(asked).await? {
            state.shard.cast(ShardMessage::Event(answer))?;
        }
        Ok(())
    }
}

impl ReaderState {
    async fn answer(&mut self, asked: ReaderMessage) -> Result<Option<Event>, StoreError> {
        let question = match asked {
            ReaderMessage::Ledger(question) => question,
            ReaderMessage::Commands => return Ok(self.commands().await),
        };
        let answer = match question {
            Question::Trim(_) => return Ok(self.trim(&question).await),
            Question::DeadLetters(command, filter, after, most) => Some(
                self.dead_letters(command, most, |limit| {
                    Question::DeadLetters(command, filter.clone(), after.clone(), limit)
                })
                .await,
            ),
            question => self.ask(&question).await?,
        };
        Ok(answer.map(Event::Answered))
    }

    /// Removes rows that nobody needs any more. Those that are not removed now are removed the next time.
    async fn trim(&self, question: &Question) -> Option<Event> {
        let (env, shard) = (&self.env, self.shard_no);
        if let Err(error) = question.answer(&*env.store, shard, env.clock.now()).await {
            warn!(shard, %error, "store could not be trimmed");
        }
        None
    }

    /// The open commands. They are asked for again soon, so a failure is only logged. A command that a newer program
    /// recorded stays open and does not hold up the others: it is logged once and passed over.
    async fn commands(&mut self) -> Option<Event> {
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
                (!commands.is_empty()).then_some(Event::Commands(commands))
            }
            Err(error) => {
                warn!(shard = self.shard_no, %error, "operators' commands cannot be read, trying again");
                None
            }
        }
    }

    /// Reads dead letters. They may be large: fewer are asked for after a read that failed, more again after one that
    /// succeeded.
    async fn dead_letters(&mut self, command: i64, most: usize, at_most: impl Fn(usize) -> Question) -> Answer {
        let (env, shard) = (Arc::clone(&self.env), self.shard_no);
        loop {
            let limit = self.letters.clamp(1, most);
            match at_most(limit).answer(&*env.store, shard, env.clock.now()).await {
                Ok(answer) => {
                    self.letters = limit.saturating_mul(2);
                    return answer.unwrap_or(Answer::DeadRefused(command));
                }
                Err(StoreError::Unavailable(error)) => {
                    warn!(shard, limit, error, "dead letters cannot be read, trying again with fewer");
                    self.letters = limit / 2;
                    sleep(AGAIN).await;
                }
                Err(error) => {
                    warn!(shard, command, %error, "dead letters cannot be read: the command ends here");
                    return Answer::DeadRefused(command);
                }
            }
        }
    }

    /// Asks until the store answers; an outage is waited for.
    async fn ask(&self, question: &Question) -> Result<Option<Answer>, StoreError> {
        let (env, shard) = (&self.env, self.shard_no);
        let mut failed = false;
        loop {
            match question.answer(&*env.store, shard, env.clock.now()).await {
                Err(StoreError::Unavailable(error) | StoreError::Refused(error)) => {
                    warn!(shard, error, "store cannot be read, trying again");
                    env.troubles.set_unread(shard, Some(error));
                    failed = true;
                    sleep(AGAIN).await;
                }
                answer => {
                    if failed {
                        env.troubles.set_unread(shard, None);
                    }
                    return answer;
                }
            }
        }
    }
}
