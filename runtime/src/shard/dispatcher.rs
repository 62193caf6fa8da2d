//! The dispatcher, which publishes a shard's events to one sink: in sequence, pipelined, and again from the watermark
//! after a failure.
//! In: durable commits, or their events read back from the store; the sink's answers. Out: the sink's progress.

pub(crate) mod handover;

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tracing::{error, info, warn};

use self::handover::Handover;
use super::env::Env;
use super::env::troubles::Endpoint;
use super::messages::{DispatcherMessage, ShardMessage};
use crate::clock::{Dice, sleep};
use crate::handler::RetryPolicy;
use crate::ledger::outbox::publisher::{Progress, Publisher};
use crate::ledger::protocol::Event;
use crate::message::{ShardNo, SinkIx};
use crate::metrics::SinkMetrics;
use crate::settings::RetrySettings;
use crate::store::StoreError;
use crate::telemetry::traces;
use crate::transport::{Sink, SinkError};

/// The time for which it waits for anything before it looks at its gauges.
const WAIT: Duration = Duration::from_millis(500);

/// The pause after the store had less than it should, or could not be read; and while a sink has no room and owes no
/// answers.
const AGAIN: Duration = Duration::from_millis(100);

/// The dispatcher of one shard and sink.
pub(crate) struct Dispatcher;

/// The arguments of a dispatcher.
#[derive(Clone)]
pub(crate) struct DispatcherArgs {
    pub(crate) env: Arc<Env>,
    pub(crate) shard_no: ShardNo,
    /// The index of the sink.
    pub(crate) sink: SinkIx,
    pub(crate) shard: ActorRef<ShardMessage>,
    pub(crate) handover: Arc<Handover>,
}

/// The dispatcher's state.
pub(crate) struct DispatcherState {
    args: DispatcherArgs,
    metrics: SinkMetrics,
    publisher: Option<Publisher>,
    sink: Option<Box<dyn Sink>>,
    /// Failures of the sink since it last took or confirmed something.
    failures: u32,
    dice: Dice,
}

impl Actor for Dispatcher {
    type Msg = DispatcherMessage;
    type State = DispatcherState;
    type Arguments = DispatcherArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<DispatcherMessage>,
        args: DispatcherArgs,
    ) -> Result<DispatcherState, ActorProcessingErr> {
        args.shard.cast(ShardMessage::Dispatcher(args.sink, myself))?;
        let metrics = args.env.metrics.sink(args.shard_no, args.env.sinks[args.sink].name());
        Ok(DispatcherState { args, metrics, publisher: None, sink: None, failures: 0, dice: Dice::from_system() })
    }

    async fn handle(
        &self,
        myself: ActorRef<DispatcherMessage>,
        message: DispatcherMessage,
        state: &mut DispatcherState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DispatcherMessage::Begin(watermark, durable) => {
                let DispatcherArgs { env, sink, .. } = &state.args;
                let (bindings, window) = (env.bindings.clone(), env.window());
                state.publisher = Some(Publisher::new(*sink, bindings, window, (watermark, durable)));
            }
            DispatcherMessage::Pump => state.pump().await?,
        }
        // Messages that came in the meantime are handled first; after `Begin` there are none but this one.
        myself.cast(DispatcherMessage::Pump)?;
        Ok(())
    }
}

impl DispatcherState {
    /// Performs one step: takes up durable events, hands over as many as there is room for, and waits until something
    /// changes.
    async fn pump(&mut self) -> Result<(), ActorProcessingErr> {
        let Some(publisher) = self.publisher.as_mut() else { return Ok(()) };
        let waiting = self.args.handover.take();
        publisher.durable(waiting.durable);
        waiting.commits.iter().for_each(|commit| publisher.committed(commit));
        let read = self.read_back().await?;
        self.tell()?;
        if let Err(error) = self.publish(read).await {
            self.failed(&error).await;
        }
        Ok(())
    }

    /// Reads the events that did not come by the handover. Returns whether there is more to read at once.
    async fn read_back(&mut self) -> Result<bool, ActorProcessingErr> {
        let Some(publisher) = self.publisher.as_mut() else { return Ok(false) };
        let Some(page) = publisher.page() else { return Ok(false) };
        let DispatcherArgs { env, shard_no, .. } = &self.args;
        let rows = match env.store.outbox(*shard_no, page.from, page.after, page.commits).await {
            Ok(rows) => rows,
            Err(StoreError::Unavailable(error) | StoreError::Refused(error)) => {
                warn!(shard = shard_no, error, "outbox cannot be read, trying again");
                publisher.unreadable();
                sleep(AGAIN).await;
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        let missing = publisher.paged(page, &rows);
        if missing > 0 || rows.is_empty() {
            let (shard, after) = (shard_no, page.after);
            error!(shard, after, missing, "outbox lacks events that were committed");
            sleep(AGAIN).await;
        }
        Ok(publisher.page().is_some())
    }

    /// Hands over and waits for answers, for new commits, or for a while.
    async fn publish(&mut self, more: bool) -> Result<(), SinkError> {
        let Some(publisher) = self.publisher.as_mut() else { return Ok(()) };
        let DispatcherArgs { env, shard_no, handover, sink, .. } = &self.args;
        let end = match &mut self.sink {
            Some(end) => end,
            None => self.sink.insert(env.sinks[*sink].open(*shard_no).await?),
        };
        let mut stuck = false;
        while !stuck && !publisher.ready().is_empty() {
            let count = end.send(publisher.ready())?;
            for out in &publisher.ready()[..count] {
                // A span without a duration: one answer comes for many events.
                drop(traces::send(env.sinks[*sink].name(), &out.topic, &out.message));
            }
            publisher.sent(count);
            stuck = count == 0;
        }
        let owed = publisher.awaits_answers();
        let wait = if stuck && !owed { AGAIN } else { WAIT };
        if more {
            handover.wake();
        }
        tokio::select! {
            answers = end.answers(), if owed => {
                // An end that breaks as soon as it is opened must not be reopened without a pause.
                let confirmed = publisher.answered(answers?);
                self.failures = 0;
                env.troubles.back(*shard_no, Endpoint::Sink(*sink));
                self.metrics.add_published(confirmed);
            }
            () = handover.changed() => {}
            // A sink that owes answers should give them sooner.
            () = sleep(wait) => if owed {
                env.troubles.away(*shard_no, Endpoint::Sink(*sink), "it confirms nothing");
            }
        }
        Ok(())
    }

    /// Reports the sink's progress to the shard, and the rest to the gauges.
    fn tell(&mut self) -> Result<(), ActorProcessingErr> {
        let Some(publisher) = self.publisher.as_mut() else { return Ok(()) };
        let now = self.args.env.clock.now();
        self.metrics.set_pending(publisher.pending());
        self.metrics
            .set_lag(publisher.oldest().map_or(Duration::ZERO, |at| Duration::from_millis(now.saturating_sub(at))));
        let Some(progress) = publisher.progress() else { return Ok(()) };
        self.report(&progress);
        self.args.shard.cast(ShardMessage::Event(Event::Published(self.args.sink, progress)))?;
        Ok(())
    }

    fn report(&self, progress: &Progress) {
        self.metrics.add_refused(progress.refused.len() as u64);
        for unpublished in &progress.refused {
            let (shard, sink) = (self.args.shard_no, self.name());
            let (topic, reason) = (&*unpublished.event.topic, &unpublished.reason);
            let (message_id, service) = (unpublished.event.message.id(), &*unpublished.service);
            warn!(shard, sink, topic, service, message_id, reason, "sink refused an event, it becomes a dead letter");
        }
    }

    /// Waits an outage out, which spends no restarts. A broken end is opened anew.
    async fn failed(&mut self, failure: &SinkError) {
        let (shard, sink) = (self.args.shard_no, self.name());
        let (SinkError::Unavailable { reason, .. } | SinkError::Broken { reason, .. }) = failure;
        self.args.env.troubles.away(shard, Endpoint::Sink(self.args.sink), reason);
        match failure {
            SinkError::Unavailable { reason, .. } => warn!(shard, sink, reason, "sink cannot be written, trying again"),
            SinkError::Broken { reason, .. } => {
                info!(shard, sink, reason, "sink is opened anew, publishing goes on from its watermark");
                self.sink = None;
                if let Some(publisher) = self.publisher.as_mut() {
                    publisher.restart();
                }
            }
        }
        self.failures += 1;
        sleep(pause(self.failures, &mut self.dice)).await;
    }

    fn name(&self) -> &str {
        self.args.env.sinks[self.args.sink].name()
    }
}

/// The pause before a sink is tried again.
fn pause(failures: u32, dice: &mut Dice) -> Duration {
    let settings = RetrySettings {
        base: Duration::from_millis(50),
        factor: 2.0,
        cap: Duration::from_secs(5),
        ..RetrySettings::default()
    };
    RetryPolicy::from(&settings).delay(failures, dice)
}
