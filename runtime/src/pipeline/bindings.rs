//! Which service handles what, and under which key. Pure.
//! In: the settings' bindings, deliveries, events. Out: arrivals for the ledger, rows for the embedded log.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ledger::{Arrival, What};
use crate::handlers::Handlers;
use crate::message::{Draft, Message, ShardNo, check_name, shard_of};
use crate::settings::{Bind, KeyFrom, Settings, Unbound};
use crate::store::{LogRow, Part};
use crate::transport::{Content, Delivery, embedded};

/// The routes of a program.
#[derive(Clone, Debug)]
pub struct Bindings {
    handlers: Handlers,
    binds: Vec<Bind>,
    shards: u32,
    message_bytes_max: usize,
    unbound: Unbound,
}

impl Bindings {
    /// The settings' bindings; the error names the service that one of them has and the program has not.
    pub fn new(settings: &Settings, handlers: Handlers) -> Result<Self, String> {
        if let Some(bind) = settings.bind.iter().find(|bind| handlers.index_of(&bind.service).is_none()) {
            return Err(format!("bind of type {:?}: {}", bind.kind, handlers.unknown(&bind.service)));
        }
        Ok(Self {
            handlers,
            binds: settings.bind.clone(),
            shards: settings.ownership.shards,
            message_bytes_max: settings.ingress.message_bytes_max,
            unbound: settings.ingress.unbound,
        })
    }

    /// A delivery of `source` as arrivals for the ledger: one for each service that takes it.
    pub fn arrivals(&self, source: &str, delivery: Delivery) -> Vec<Arrival> {
        let mut arrivals = Vec::with_capacity(1);
        self.route(source, delivery, &mut arrivals);
        arrivals
    }

    /// [`Bindings::arrivals`], added to those of the deliveries before it.
    pub(crate) fn route(&self, source: &str, delivery: Delivery, arrivals: &mut Vec<Arrival>) {
        let Delivery { origin, position, content } = delivery;
        let last = match content {
            Content::For(service, message) => self.addressed(&service, message),
            Content::Unreadable { message, reason } => What::Refused(None, message, reason),
            Content::Unrouted(message) => {
                let mut whats = self.unrouted(source, &message);
                let Some(last) = whats.pop() else { return };
                let firsts =
                    whats.into_iter().map(|what| Arrival { origin: origin.clone(), position, last: false, what });
                arrivals.extend(firsts);
                last
            }
        };
        arrivals.push(Arrival { origin, position, last: true, what: last });
    }

    fn addressed(&self, service: &str, message: Message) -> What {
        match self.handlers.index_of(service) {
            Some(index) => self.sized(index, message),
            None => What::Refused(None, message, self.handlers.unknown(service)),
        }
    }

    /// Why a message is not run, if it is not.
    pub(crate) fn refusal(&self, message: &Message) -> Option<String> {
        let (bytes, max) = (message.frame().len(), self.message_bytes_max);
        (bytes > max)
            .then(|| format!("the message has {bytes} bytes, at most {max} are taken (ingress.message_bytes_max)"))
    }

    fn sized(&self, service: u16, message: Message) -> What {
        if let Some(reason) = self.refusal(&message) {
            return What::Refused(Some(service), message, reason);
        }
        // A missing key is the ledger's to refuse: it knows where to keep what belongs to no key.
        let key = (!message.key().is_empty()).then(|| check_name("key", message.key().as_bytes()));
        if let Some(Err(error)) = key {
            return What::Refused(None, message, error.to_string());
        }
        What::Message(service, message)
    }

    fn unrouted(&self, source: &str, message: &Message) -> Vec<What> {
        let routed: Vec<_> =
            self.matching(source, message.kind()).map(|bind| self.addressed(&bind.service, message.clone())).collect();
        if !routed.is_empty() {
            return routed;
        }
        vec![match self.unbound {
            Unbound::Skip => What::Unbound,
            Unbound::DeadLetter => {
                let reason = format!("no binding takes messages of type {:?} from {source}", message.kind());
                What::Refused(None, message.clone(), reason)
            }
        }]
    }

    fn matching(&self, source: &str, kind: &str) -> impl Iterator<Item = &Bind> {
        self.binds.iter().filter(move |bind| {
            bind.source == source
                && bind.kind.strip_suffix('*').map_or(bind.kind == kind, |start| kind.starts_with(start))
        })
    }

    /// The events of a commit that go to services of this store: one row for each shard that is to read some.
    pub(crate) fn log_rows(&self, parts: &[Part]) -> Vec<LogRow> {
        if self.binds.iter().all(|bind| bind.source != embedded::NAME) {
            return Vec::new();
        }
        let mut routed: Vec<(ShardNo, &str, Message)> = Vec::new();
        for event in parts.iter().flat_map(|part| &part.events) {
            for bind in self.matching(embedded::NAME, event.message.kind()) {
                let message = match bind.key {
                    KeyFrom::Record => event.message.clone(),
                    KeyFrom::Handler => self.rekeyed(&bind.service, &event.message),
                };
                routed.push((shard_of(message.key(), self.shards), &bind.service, message));
            }
        }
        let mut rows: BTreeMap<ShardNo, Vec<(&str, &Message)>> = BTreeMap::new();
        for (shard, service, message) in &routed {
            rows.entry(*shard).or_default().push((service, message));
        }
        let row = |(target, messages): (ShardNo, Vec<(&str, &Message)>)| LogRow {
            target,
            count: u32::try_from(messages.len()).unwrap_or(u32::MAX),
            messages: embedded::encode(&messages),
        };
        rows.into_iter().map(row).collect()
    }

    /// The message under the key that its handler gives it. One that the handler cannot read keeps the record's key:
    /// it is rejected, with the reason, when its turn comes.
    fn rekeyed(&self, service: &str, message: &Message) -> Message {
        let Ok(key) = self.handlers.key_of(service, message.payload()) else { return message.clone() };
        let headers: Vec<_> = message.headers().collect();
        let draft = Draft {
            id: message.id(),
            key: key.as_str(),
            kind: message.kind(),
            source: message.source(),
            time: message.time(),
            headers: &headers,
            payload: message.payload(),
        };
        draft.build().unwrap_or_else(|_| message.clone())
    }
}

/// The services of `handlers` as the ledger knows them.
pub(crate) fn describe(
    handlers: &Handlers,
    numbers: &BTreeMap<Arc<str>, u16>,
    settings: &Settings,
) -> Vec<super::ledger::ServiceInfo> {
    let describe = |service: &Arc<dyn crate::handlers::Service>| super::ledger::ServiceInfo {
        name: service.name().into(),
        number: numbers.get(service.name()).copied().unwrap_or(u16::MAX),
        retry: service.retry().unwrap_or_else(|| (&settings.retry).into()),
        after_dead_letter: service.after_dead_letter(),
    };
    handlers.all().iter().map(describe).collect()
}
