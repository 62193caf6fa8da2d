//! The key actor, which runs one key's turns, one at a time; it gets another key when its own has nothing to do.
//! In: run orders. Out: reports to the shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::env::Env;
use super::messages::ShardMessage;
use crate::clock::Stopwatch;
use crate::handlers::{Cell, RunContext, Settled, discard};
use crate::ledger::protocol::{ActorIx, Event, RunOrder, RunReport};

/// The arguments of a key actor.
pub(crate) struct KeyActorArgs {
    pub(crate) ix: ActorIx,
    pub(crate) env: Arc<Env>,
    pub(crate) shard: ActorRef<ShardMessage>,
    /// The number of runs under way in this shard: the shard is not taken again before they have ended.
    pub(crate) live: Arc<AtomicUsize>,
}

/// A key's actor.
pub(crate) struct KeyActor;

/// The key actor's state.
pub(crate) struct KeyActorState {
    args: KeyActorArgs,
    context: RunContext,
    cell: Cell,
}

struct Live<'a>(&'a AtomicUsize);

impl Drop for Live<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Actor for KeyActor {
    type Msg = RunOrder;
    type State = KeyActorState;
    type Arguments = KeyActorArgs;

    async fn pre_start(&self, _: ActorRef<RunOrder>, args: KeyActorArgs) -> Result<KeyActorState, ActorProcessingErr> {
        let context = args.env.run_context();
        Ok(KeyActorState { args, context, cell: None })
    }

    async fn handle(
        &self,
        _: ActorRef<RunOrder>,
        order: RunOrder,
        state: &mut KeyActorState,
    ) -> Result<(), ActorProcessingErr> {
        let KeyActorState { args, context, cell } = state;
        args.live.fetch_add(1, Ordering::AcqRel);
        let _live = Live(&args.live);
        let report = |settled: Settled, done: bool| {
            let RunOrder { slot, no, .. } = order;
            let Settled { turns, state, alone, panic } = settled;
            let gone = panic.is_some();
            (
                ShardMessage::Event(Event::Ran(RunReport {
                    actor: args.ix,
                    slot,
                    no,
                    turns,
                    state,
                    alone,
                    done,
                    gone,
                })),
                panic,
            )
        };
        // The shard outlives its key actors, except while all of them are being stopped.
        let early = |settled| drop(args.shard.cast(report(settled, false).0));
        let watch = Stopwatch::start();
        let service = &args.env.handlers.all()[order.service];
        let settled = service.run(cell, order.state, order.items, context, &early).await;
        args.env.service_metrics[order.service].record_run(settled.turns.len() as u64, watch.elapsed());
        let (report, panic) = report(settled, true);
        drop(args.shard.cast(report));
        // Its supervisor is to see the panic: the state that the handler left in this actor is not trusted.
        panic.map_or(Ok(()), |panic| {
            discard(cell.take());
            Err(panic.into())
        })
    }
}
