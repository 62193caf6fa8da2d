//! The ingress, which takes deliveries from one source while it holds credits, and passes them on in batches.
//! In: credits, deliveries. Out: arrivals for the shard's ledger.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tracing::{error, info, warn};

use super::env::Env;
use super::env::troubles::Endpoint;
use super::messages::{IngressMessage, ShardMessage};
use crate::clock::sleep;
use crate::ledger::protocol::Event;
use crate::ledger::routes::{Arrival, What};
use crate::message::{ShardNo, SourceIx};
use crate::metrics::{Alarm, ShardMetrics};
use crate::transport::{Source, SourceError, Transport};

/// The pause after a source could not be read.
const AGAIN: Duration = Duration::from_millis(250);

/// The time for which a fetch may wait for deliveries.
const WAIT: Duration = Duration::from_millis(500);

/// The ingress of one source of a shard.
pub(crate) struct Ingress;

/// The arguments of an ingress.
#[derive(Clone)]
pub(crate) struct IngressArgs {
    pub(crate) env: Arc<Env>,
    pub(crate) shard_no: ShardNo,
    /// The index of the source.
    pub(crate) source: SourceIx,
    pub(crate) shard: ActorRef<ShardMessage>,
}

/// The ingress's state.
pub(crate) struct IngressState {
    args: IngressArgs,
    source: Option<Box<dyn Source>>,
    /// Below 0 after a delivery for more services than there were credits.
    credits: isize,
    /// Bytes that may still be taken in hand; below 0 after deliveries that had more.
    room: isize,
    fetching: bool,
    /// Openings so far.
    openings: u64,
    /// True if the source could not be read since it was opened, or judged.
    troubled: bool,
    metrics: ShardMetrics,
}

impl Actor for Ingress {
    type Msg = IngressMessage;
    type State = IngressState;
    type Arguments = IngressArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<IngressMessage>,
        args: IngressArgs,
    ) -> Result<IngressState, ActorProcessingErr> {
        args.shard.cast(ShardMessage::Ingress(args.source, myself))?;
        let metrics = args.env.metrics.shard(args.shard_no);
        let (credits, room, openings) = (0, 0, 0);
        let (source, fetching, troubled) = (None, false, false);
        Ok(IngressState { args, source, credits, room, fetching, openings, troubled, metrics })
    }

    async fn handle(
        &self,
        myself: ActorRef<IngressMessage>,
        message: IngressMessage,
        state: &mut IngressState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            IngressMessage::Begin(from, credits, room) => {
                let opened = state.transport().open(state.args.shard_no, from).await;
                (state.openings, state.troubled) = (state.openings + 1, false);
                (state.credits, state.room) = (credits, room);
                match opened {
                    Ok(source) => state.source = Some(source),
                    Err(SourceError::Lost { reason, .. }) => state.lost(&myself, reason),
                    Err(error) => return Err(error.into()),
                }
                state.judge_later(&myself);
            }
            // The shard answers with the positions to go on from, as it does for an ingress that was restarted.
            IngressMessage::Reopen => {
                state.args.shard.cast(ShardMessage::Ingress(state.args.source, myself.clone()))?
            }
            IngressMessage::Judge(opening) if opening == state.openings => state.judge(&myself),
            IngressMessage::Judge(_) => {}
            IngressMessage::Credit(more) => state.credits += more.cast_signed(),
            IngressMessage::Room(more) => state.room += more.cast_signed(),
            IngressMessage::Acknowledge(positions) => {
                if let Some(source) = state.source.as_mut() {
                    source.committed(&positions);
                }
            }
            IngressMessage::Fetch => {
                state.fetching = false;
                fetch(&myself, state).await?;
            }
        }
        if state.credits > 0 && state.room > 0 && state.source.is_some() && !state.fetching {
            state.fetching = true;
            myself.cast(IngressMessage::Fetch)?;
        }
        Ok(())
    }
}

impl IngressState {
    fn transport(&self) -> &dyn Transport {
        &*self.args.env.transports[self.args.source]
    }

    /// Stops the source, and nothing else: no restart is spent on a fault that only an operator can mend.
    fn lost(&mut self, myself: &ActorRef<IngressMessage>, reason: String) {
        self.source = None;
        let (shard, source) = (self.args.shard_no, self.transport().name());
        if !self.is_lost() {
            error!(shard, source, reason, "source lost its place, it stands still until that is mended");
        }
        self.args.env.troubles.set_lost(shard, self.args.source, Some(reason));
        self.metrics.set_alarm(Alarm::SourceLost, true);
        myself.send_after(self.transport().lost_for(), || IngressMessage::Reopen);
    }

    fn is_lost(&self) -> bool {
        self.args.env.troubles.lost(self.args.shard_no).contains_key(&self.args.source)
    }

    /// A lost place may show long after the opening, while other partitions are read: only time tells that it was found
    /// again.
    fn judge_later(&self, myself: &ActorRef<IngressMessage>) {
        if self.source.is_some() && self.is_lost() {
            let opening = self.openings;
            myself.send_after(self.transport().lost_for(), move || IngressMessage::Judge(opening));
        }
    }

    fn judge(&mut self, myself: &ActorRef<IngressMessage>) {
        if self.source.is_none() || std::mem::take(&mut self.troubled) {
            return self.judge_later(myself);
        }
        let (shard, source) = (self.args.shard_no, self.transport().name());
        info!(shard, source, "source found its place again");
        self.args.env.troubles.set_lost(shard, self.args.source, None);
        self.metrics.set_alarm(Alarm::SourceLost, !self.args.env.troubles.lost(shard).is_empty());
    }
}

async fn fetch(myself: &ActorRef<IngressMessage>, state: &mut IngressState) -> Result<(), ActorProcessingErr> {
    let IngressState { args, source: Some(source), credits, room, .. } = state else { return Ok(()) };
    let name = args.env.transports[args.source].name();
    // Deliveries were asked for while there were credits; a delivery may have taken more than one since.
    let Ok(most @ 1..) = usize::try_from(*credits) else { return Ok(()) };
    // The size of deliveries is not known before: a source has read no more ahead than it may, and the last fetch takes
    // that in hand.
    let most = most.min(args.env.settings.ingress.batch_max);
    // Not for ever: acknowledgements wait behind it in the mailbox. Dropping a fetch loses nothing.
    let fetched = tokio::time::timeout(WAIT, source.fetch(most)).await;
    let deliveries = match fetched.unwrap_or(Ok(Vec::new())) {
        Ok(deliveries) if deliveries.is_empty() => return Ok(()),
        Ok(deliveries) => {
            args.env.troubles.back(args.shard_no, Endpoint::Source(args.source));
            deliveries
        }
        // An outage is waited for: it spends neither attempts nor restarts.
        Err(error @ SourceError::Unavailable { .. }) => {
            warn!(shard = args.shard_no, source = name, %error, "source cannot be read, trying again");
            args.env.troubles.away(args.shard_no, Endpoint::Source(args.source), &error.to_string());
            state.troubled = true;
            sleep(AGAIN).await;
            return Ok(());
        }
        Err(SourceError::Lost { reason, .. }) => {
            state.lost(myself, reason);
            return Ok(());
        }
        Err(error @ SourceError::Broken { .. }) => return Err(error.into()),
    };
    let mut arrivals = Vec::with_capacity(deliveries.len());
    for delivery in deliveries {
        args.env.bindings.route(name, delivery, &mut arrivals);
    }
    number_absent(args, &mut arrivals).await;
    *credits -= arrivals.len().cast_signed();
    *room -= arrivals.iter().map(|arrival| arrival.bytes() as usize).sum::<usize>().cast_signed();
    args.shard.cast(ShardMessage::Event(Event::Fetched(args.source, arrivals)))?;
    Ok(())
}

/// Asks the store for the numbers of services that this program does not have: other programs may have brought them
/// since it started. Fetched deliveries wait while the store cannot be read.
async fn number_absent(args: &IngressArgs, arrivals: &mut [Arrival]) {
    if !arrivals.iter().any(|arrival| matches!(arrival.what, What::Absent(..))) {
        return;
    }
    let numbers = loop {
        match args.env.store.queries().services().await {
            Ok(numbers) => break numbers,
            Err(error) => {
                warn!(shard = args.shard_no, %error, "services' numbers cannot be read, trying again");
                sleep(AGAIN).await;
            }
        }
    };
    for arrival in arrivals {
        if let What::Absent(service, number, _) = &mut arrival.what {
            *number = numbers.get(service).copied();
        }
    }
}
