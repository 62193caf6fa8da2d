//! The committer, which takes a shard's commits to the store, one at a time.
//! In: commits. Out: their outcomes.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;

use super::env::Env;
use super::messages::{CommitterMessage, ShardMessage};
use crate::clock::{Dice, Stopwatch, sleep};
use crate::handler::RetryPolicy;
use crate::ledger::protocol::Event;
use crate::settings::RetrySettings;
use crate::store::CommitOutcome;
use crate::telemetry::traces;

/// A shard's committer.
pub(crate) struct Committer;

/// The committer's state.
pub(crate) struct CommitterState {
    env: Arc<Env>,
    shard: ActorRef<ShardMessage>,
    dice: Dice,
    /// Room for one commit at the store, from the gate until the commit has ended.
    room: Option<OwnedSemaphorePermit>,
}

impl CommitterState {
    /// Waits until the store has room. Meanwhile more turns settle: a waiting shard's batch grows with load.
    async fn wait_for_room(&mut self) {
        if self.room.is_none()
            && let Some(in_flight) = &self.env.in_flight
        {
            self.room = Arc::clone(in_flight).acquire_owned().await.ok();
        }
    }
}

impl Actor for Committer {
    type Msg = CommitterMessage;
    type State = CommitterState;
    type Arguments = (Arc<Env>, ActorRef<ShardMessage>);

    async fn pre_start(
        &self,
        myself: ActorRef<CommitterMessage>,
        (env, shard): Self::Arguments,
    ) -> Result<CommitterState, ActorProcessingErr> {
        shard.cast(ShardMessage::Committer(myself))?;
        Ok(CommitterState { env, shard, dice: Dice::from_system(), room: None })
    }

    async fn handle(
        &self,
        _: ActorRef<CommitterMessage>,
        message: CommitterMessage,
        state: &mut CommitterState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            // Everything in the shard's mailbox is decided before this arrives there: batches grow with load.
            CommitterMessage::Gate => {
                state.wait_for_room().await;
                state.shard.cast(ShardMessage::Event(Event::Gate))?;
            }
            CommitterMessage::Nothing => state.room = None,
            CommitterMessage::Write(commit, tries) => {
                if tries > 0 {
                    sleep(pause(tries, &mut state.dice)).await;
                }
                state.wait_for_room().await;
                let watch = Stopwatch::start();
                let span = traces::commit(&commit);
                let outcome = state.env.store.commit(&commit).instrument(span).await;
                state.room = None;
                if matches!(outcome, CommitOutcome::Committed) {
                    state.env.pending.committed(&commit);
                }
                let turns = commit.parts.iter().map(|part| part.ids.len() + part.settled.len()).sum::<usize>();
                state.env.metrics.record_commit(&outcome, turns as u64, watch.elapsed());
                state.shard.cast(ShardMessage::Event(Event::CommitEnded(commit.epoch, commit.no, outcome)))?;
            }
        }
        Ok(())
    }
}

/// The pause before the store is tried again, while it is not available.
fn pause(tries: u32, dice: &mut Dice) -> Duration {
    let settings = RetrySettings {
        base: Duration::from_millis(20),
        factor: 2.0,
        cap: Duration::from_secs(1),
        ..RetrySettings::default()
    };
    RetryPolicy::from(&settings).delay(tries, dice)
}
