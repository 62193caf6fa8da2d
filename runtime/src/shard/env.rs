//! The environment that all actors of the tree share, and the ends of actors in words.
//! In: settings, handlers, store, transports. Out: one environment for every actor; ends with their reasons, restarts
//! as spans.

pub mod recorder;
pub(crate) mod troubles;

use std::sync::Arc;
use std::time::Duration;

use ractor::{ActorCell, ActorId, SupervisionEvent};
use tokio::sync::Semaphore;
use tracing::{Span, warn};

use self::recorder::Recorder;
use self::troubles::Troubles;
use super::permits::PermitPool;
use super::waiters::PendingCalls;
use super::worker::Ownership;
use crate::clock::{Clock, millis};
use crate::handler::TurnLimits;
use crate::handlers::run::HandlerPanic;
use crate::handlers::{Handlers, RunContext};
use crate::ledger::outbox::publisher::Window;
use crate::ledger::protocol::ServiceInfo;
use crate::ledger::routes::Bindings;
use crate::message::ShardNo;
use crate::metrics::{Child, Metrics, RestartReason, ServiceMetrics};
use crate::settings::Settings;
use crate::store::{Identity, Store};
use crate::telemetry::traces;
use crate::transport::{SinkTransport, Transport};

/// The environment that every actor of the tree shares.
pub(crate) struct Env {
    pub(crate) settings: Arc<Settings>,
    pub(crate) handlers: Handlers,
    pub(crate) services: Arc<[ServiceInfo]>,
    pub(crate) service_metrics: Vec<ServiceMetrics>,
    pub(crate) bindings: Arc<Bindings>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) transports: Vec<Arc<dyn Transport>>,
    /// The sinks that events are routed to, in the order of the bindings' indices.
    pub(crate) sinks: Vec<Arc<dyn SinkTransport>>,
    pub(crate) metrics: Arc<Metrics>,
    /// The gates, which let turns start that need something from outside.
    pub(crate) gates: Arc<PermitPool>,
    pub(crate) clock: Clock,
    /// The recorder of the ledgers' events, if there is one.
    pub(crate) recorder: Option<Arc<Recorder>>,
    pub(crate) identity: Identity,
    /// The troubles that stand in the way of being ready.
    pub(crate) troubles: Troubles,
    /// The name of this process as an owner, where the store has no leases.
    pub(crate) process: String,
    /// This worker's part in its fleet, where the store has leases.
    pub(crate) fleet: Option<Ownership>,
    /// The callers that wait here for the end of a call.
    pub(crate) pending: Arc<PendingCalls>,
    /// Room for commits on their way to the store, where it takes several at once.
    pub(crate) in_flight: Option<Arc<Semaphore>>,
}

impl Env {
    /// The name of this process as an owner. In a fleet it changes when the worker comes back as another incarnation.
    pub(crate) fn owner(&self) -> String {
        self.fleet.as_ref().map_or_else(|| self.process.clone(), |fleet| fleet.view().id.clone())
    }

    /// The bounds on a shard's events that are on their way to one sink.
    pub(crate) fn window(&self) -> Window {
        let (settings, ends) = (&self.settings, self.transports.len() + self.sinks.len());
        Window { events: settings.outbox.window, bytes: settings.memory.share(settings.ownership.shards, ends) }
    }

    /// The problems that stand in the way of being ready, each a sentence.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.troubles.problems(self.settings.admin.away_max, |end| match end {
            troubles::Endpoint::Source(no) => format!("source {}", self.transports[no].name()),
            troubles::Endpoint::Sink(no) => format!("sink {}", self.sinks[no].name()),
        })
    }

    pub(crate) fn run_context(&self) -> RunContext {
        let limits = &self.settings.limits;
        RunContext {
            clock: self.clock.clone(),
            limits: TurnLimits {
                rows_max: limits.turn_rows_max,
                events_max: limits.turn_events_max,
                bytes_max: limits.turn_bytes_max,
            },
            slice: self.settings.actors.slice,
            hash_key: self.identity.hash_key,
        }
    }
}

/// The end of a child.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) id: ActorId,
    pub(crate) word: RestartReason,
    pub(crate) reason: String,
    /// The `traceparent` of the turn that caused it, if one did.
    pub(crate) cause: Option<String>,
}

impl End {
    /// The end that an event reports, if it reports one.
    pub(crate) fn of(event: &SupervisionEvent) -> Option<Self> {
        let end = |cell: &ActorCell, word, reason: String| Self { id: cell.get_id(), word, reason, cause: None };
        match event {
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                let reason = reason.clone().unwrap_or_else(|| "it stopped".to_owned());
                Some(end(cell, RestartReason::Ended, reason))
            }
            SupervisionEvent::ActorFailed(cell, error) => {
                let panic = error.downcast_ref::<HandlerPanic>();
                let word = if panic.is_some() { RestartReason::Panicked } else { RestartReason::Failed };
                let cause = panic.and_then(|panic| panic.cause.clone());
                Some(Self { cause, ..end(cell, word, error.to_string()) })
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => None,
        }
    }
}

/// The span of a restart, with its log line. It carries the trace of the message that caused it.
pub(crate) fn restart_span(child: Child, shard: ShardNo, end: &End, after: Duration) -> Span {
    let (child, word) = (child.as_str(), end.word.as_str());
    let span = traces::restart(child, shard, word, end.cause.as_deref());
    let delay_ms = millis(after);
    span.in_scope(|| warn!(child, shard, reason = word, error = end.reason, delay_ms, "child is restarted"));
    span
}
