//! Takes deliveries from one source while it holds credits, and passes them on in batches.
//! In: credits, deliveries. Out: arrivals for the shard's ledger.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tracing::warn;

use super::shard::ShardMessage;
use crate::clock::sleep;
use crate::message::ShardNo;
use crate::supervision::Env;
use crate::transport::{Positions, Source, SourceError};

/// Pause after a source could not be read.
const AGAIN: Duration = Duration::from_millis(250);

/// How long a fetch may wait for deliveries.
const WAIT: Duration = Duration::from_millis(500);

/// What an ingress is told.
pub(crate) enum IngressMessage {
    /// Open the source after these positions, with so many credits.
    Begin(Positions, isize),
    /// So many deliveries more.
    Credit(usize),
    /// Deliveries up to these positions are durable.
    Acknowledge(Positions),
    /// Fetch the next batch.
    Fetch,
}

/// The ingress of one source of a shard.
pub(crate) struct Ingress;

/// What an ingress is started with.
#[derive(Clone)]
pub(crate) struct IngressArgs {
    pub(crate) env: Arc<Env>,
    pub(crate) shard_no: ShardNo,
    /// Index of the source.
    pub(crate) source: u16,
    pub(crate) shard: ActorRef<ShardMessage>,
}

/// What it holds.
pub(crate) struct IngressState {
    args: IngressArgs,
    source: Option<Box<dyn Source>>,
    /// Below 0 after a delivery for more services than there were credits.
    credits: isize,
    fetching: bool,
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
        Ok(IngressState { args, source: None, credits: 0, fetching: false })
    }

    async fn handle(
        &self,
        myself: ActorRef<IngressMessage>,
        message: IngressMessage,
        state: &mut IngressState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            IngressMessage::Begin(from, credits) => {
                let transport = &state.args.env.transports[state.args.source as usize];
                state.source = Some(transport.open(state.args.shard_no, from).await?);
                state.credits = credits;
            }
            IngressMessage::Credit(more) => state.credits += more.cast_signed(),
            IngressMessage::Acknowledge(positions) => {
                if let Some(source) = state.source.as_mut() {
                    source.committed(&positions);
                }
            }
            IngressMessage::Fetch => {
                state.fetching = false;
                fetch(state).await?;
            }
        }
        if state.credits > 0 && state.source.is_some() && !state.fetching {
            state.fetching = true;
            myself.cast(IngressMessage::Fetch)?;
        }
        Ok(())
    }
}

async fn fetch(state: &mut IngressState) -> Result<(), ActorProcessingErr> {
    let IngressState { args, source: Some(source), credits, .. } = state else { return Ok(()) };
    let name = args.env.transports[args.source as usize].name();
    // Deliveries were asked for while there were credits; a delivery may have taken more than one since.
    let Ok(most @ 1..) = usize::try_from(*credits) else { return Ok(()) };
    let most = most.min(args.env.settings.ingress.batch_max);
    // Not for ever: acknowledgements wait behind it in the mailbox. Dropping a fetch loses nothing.
    let fetched = tokio::time::timeout(WAIT, source.fetch(most)).await;
    let deliveries = match fetched.unwrap_or(Ok(Vec::new())) {
        Ok(deliveries) if deliveries.is_empty() => return Ok(()),
        Ok(deliveries) => deliveries,
        // An outage is waited for: it spends neither attempts nor restarts.
        Err(error @ SourceError::Unavailable { .. }) => {
            warn!(shard = args.shard_no, source = name, %error, "source cannot be read, trying again");
            sleep(AGAIN).await;
            return Ok(());
        }
        Err(error @ SourceError::Lost { .. }) => return Err(error.into()),
    };
    let mut arrivals = Vec::with_capacity(deliveries.len());
    for delivery in deliveries {
        args.env.bindings.route(name, delivery, &mut arrivals);
    }
    *credits -= arrivals.len().cast_signed();
    args.shard.cast(ShardMessage::Fetched(args.source, arrivals))?;
    Ok(())
}
