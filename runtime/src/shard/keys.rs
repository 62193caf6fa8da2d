//! The key supervisor, which starts a shard's key actors, and restarts them.
//! In: the number of actors wanted; the ends of actors. Out: actors for the shard, news of deaths.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::env::{End, Env, restart_span};
use super::key_actor::{KeyActor, KeyActorArgs};
use super::messages::{KeysMessage, ShardMessage};
use super::policy::{RestartBudget, Verdict};
use crate::clock::Dice;
use crate::ledger::protocol::{ActorIx, Event, RunOrder};
use crate::message::ShardNo;
use crate::metrics::{Child, RestartReason};

/// A shard's key supervisor.
pub(crate) struct Keys;

/// The arguments of a key supervisor.
pub(crate) struct KeysArgs {
    pub(crate) env: Arc<Env>,
    pub(crate) shard_no: ShardNo,
    pub(crate) shard: ActorRef<ShardMessage>,
    pub(crate) live: Arc<AtomicUsize>,
}

/// The key supervisor's state.
pub(crate) struct KeysState {
    args: KeysArgs,
    actors: Vec<Option<ActorRef<RunOrder>>>,
    by_id: HashMap<ActorId, ActorIx>,
    budget: RestartBudget,
    dice: Dice,
    /// True once the actors were told to end: none is started again.
    draining: bool,
}

impl Actor for Keys {
    type Msg = KeysMessage;
    type State = KeysState;
    type Arguments = KeysArgs;

    async fn pre_start(&self, _: ActorRef<KeysMessage>, args: KeysArgs) -> Result<KeysState, ActorProcessingErr> {
        let budget = RestartBudget::new(args.env.settings.supervision.key_actor.clone());
        Ok(KeysState {
            args,
            actors: Vec::new(),
            by_id: HashMap::new(),
            budget,
            dice: Dice::from_system(),
            draining: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<KeysMessage>,
        message: KeysMessage,
        state: &mut KeysState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            KeysMessage::Spawn(more) => {
                for _ in 0..more {
                    state.actors.push(None);
                    let ix = ActorIx::nth(state.actors.len() - 1);
                    state.start(&myself, ix).await?;
                }
            }
            KeysMessage::Respawn(ix) => state.start(&myself, ix).await?,
            KeysMessage::KillAll => {
                state.draining = true;
                state.actors.iter().flatten().for_each(|actor| actor.get_cell().kill());
            }
            KeysMessage::KillOne => {
                let alive: Vec<_> = state.actors.iter().flatten().collect();
                if !alive.is_empty() {
                    alive[state.dice.below(alive.len() as u64) as usize].get_cell().kill();
                }
            }
        }
        Ok(())
    }

    // ractor's own default would stop this supervisor.
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<KeysMessage>,
        event: SupervisionEvent,
        state: &mut KeysState,
    ) -> Result<(), ActorProcessingErr> {
        let Some(end) = End::of(&event) else { return Ok(()) };
        let Some(ix) = state.by_id.remove(&end.id) else { return Ok(()) };
        state.actors[ix] = None;
        state.args.shard.cast(ShardMessage::Event(Event::ActorDied(ix, end.reason.clone())))?;
        if state.draining {
            return Ok(());
        }
        if end.word == RestartReason::Panicked {
            // It is the message's fault: that message's attempts bound it, and no other message pays.
            state.restarted(&end, Duration::ZERO);
            return state.start(&myself, ix).await;
        }
        let now = state.args.env.clock.now();
        match state.budget.on_failure(now, &mut state.dice) {
            Verdict::Restart(after) => {
                state.restarted(&end, after);
                myself.send_after(after, move || KeysMessage::Respawn(ix));
                Ok(())
            }
            Verdict::Escalate => {
                Err(format!("key actors were restarted too often, the last one ended: {}", end.reason).into())
            }
        }
    }
}

impl KeysState {
    fn restarted(&self, end: &End, after: Duration) {
        let _span = restart_span(Child::KeyActor, self.args.shard_no, end, after).entered();
        self.args.env.metrics.record_restart(Child::KeyActor, end.word);
    }

    async fn start(&mut self, myself: &ActorRef<KeysMessage>, ix: ActorIx) -> Result<(), ActorProcessingErr> {
        let KeysArgs { env, shard, live, .. } = &self.args;
        let args = KeyActorArgs { ix, env: env.clone(), shard: shard.clone(), live: live.clone() };
        let (actor, _) = Actor::spawn_linked(None, KeyActor, args, myself.get_cell()).await?;
        self.by_id.insert(actor.get_id(), ix);
        self.actors[ix] = Some(actor.clone());
        shard.cast(ShardMessage::Actor(ix, actor))?;
        Ok(())
    }
}
