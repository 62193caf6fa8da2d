//! The routes of a program: the service and the key of each message, and the sink of each event. Pure.
//! In: the settings' routes, deliveries, events. Out: arrivals for the ledger, rows for the embedded log, topics.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use crate::handler::{SentMessage, stays_inside};
use crate::handlers::Handlers;
use crate::message::{
    Draft, ID_WITHIN, KEPT_BYTES, Message, Position, ServiceIx, ShardNo, SinkIx, check_name, shard_of,
};
use crate::settings::{Bind, IdWithin, KeyFrom, Settings, Unbound};
use crate::store::{Event, LogRow, Part};
use crate::transport::{Content, Delivery, embedded};

/// Type of the events that tell of dead letters.
pub const DEAD_LETTER: &str = "perkey.dead_letter";

/// The sink that `kafka.dead_letter_topic` is a topic of.
const DEAD_LETTER_SINK: &str = "kafka";

/// The bytes of a key that are kept if it has too many.
const KEY_SHOWN: usize = 1_024;

/// The routes of a program.
#[derive(Clone, Debug)]
pub struct Bindings {
    handlers: Handlers,
    binds: Vec<Bind>,
    /// The routes to each sink, in the order of the sinks' indices.
    outlets: Vec<(Arc<str>, Vec<Outlet>)>,
    tells_of_dead: bool,
    shards: u32,
    message_bytes_max: usize,
    unbound: Unbound,
}

/// A route to a sink.
#[derive(Clone, Debug)]
struct Outlet {
    /// The service whose events are meant; `None` for all.
    service: Option<Arc<str>>,
    kind: String,
    topic: Arc<str>,
}

impl Bindings {
    /// The settings' routes; the error names all services that they name and the program does not have.
    pub fn new(settings: &Settings, handlers: Handlers) -> Result<Self, String> {
        let unknown = |route: &str, kind: &str, service: &str| {
            let missing = handlers.index_of(service).is_none();
            missing.then(|| format!("{route} of type {kind:?}: {}", handlers.unknown(service)))
        };
        let binds = settings.bind.iter().filter_map(|bind| unknown("bind", &bind.kind, &bind.service));
        let publishes = settings.publish.iter().filter(|publish| publish.service != "*");
        let publishes = publishes.filter_map(|publish| unknown("publish", &publish.kind, &publish.service));
        let problems: Vec<_> = binds.chain(publishes).collect();
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        Ok(Self {
            handlers,
            outlets: outlets(settings),
            tells_of_dead: !settings.kafka.dead_letter_topic.is_empty(),
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
        let content = match content {
            Content::For(service, message) => Content::For(service, self.kept(source, message)),
            Content::Unrouted(message) => Content::Unrouted(self.kept(source, message)),
            unreadable @ Content::Unreadable { .. } => unreadable,
        };
        let last = match content {
            Content::For(_, message) | Content::Unrouted(message)
                if stays_inside(message.kind()) && source != embedded::NAME =>
            {
                let reason = format!("messages of type {} are not taken from outside", message.kind());
                What::Refused(None, message, reason)
            }
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
            None => match misnamed(&message) {
                Some(reason) => What::Refused(None, message, reason),
                // The ingress asks the store whether other programs have it.
                None => What::Absent(service.into(), None, message),
            },
        }
    }

    /// The error that no program has such a service.
    pub(crate) fn unknown(&self, service: &str) -> String {
        self.handlers.unknown(service)
    }

    /// The reason for which a message is not run, if it is not.
    pub(crate) fn refusal(&self, message: &Message) -> Option<String> {
        let (bytes, max) = (message.frame().len(), self.message_bytes_max);
        let said = |bytes: &dyn Display| {
            format!("the message has {bytes} bytes, at most {max} are taken (ingress.message_bytes_max)")
        };
        match message.cut_from() {
            // Even if more is allowed by now, a message is not run in part.
            Some(had) => Some(format!("{}; the first {KEPT_BYTES} of its payload are kept at most", said(&had))),
            None => (bytes > max).then(|| said(&bytes)),
        }
    }

    /// The part of a message that is kept: of one from outside that is too large only the beginning, because writers to
    /// a source could fill the store with the rest.
    fn kept(&self, source: &str, message: Message) -> Message {
        let is_large = source != embedded::NAME && message.frame().len() > self.message_bytes_max;
        if is_large { message.cut() } else { message }
    }

    fn sized(&self, service: ServiceIx, message: Message) -> What {
        if let Some(reason) = self.refusal(&message) {
            return What::Refused(Some(service), message, reason);
        }
        match misnamed(&message) {
            Some(reason) => What::Refused(None, message, reason),
            None => What::Message(service, message),
        }
    }

    fn unrouted(&self, source: &str, message: &Message) -> Vec<What> {
        let routed: Vec<_> = self
            .matching(source, message.kind())
            .map(|bind| self.addressed(&bind.service, self.bound(bind, message)))
            .collect();
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
        self.binds.iter().filter(move |bind| bind.source == source && fits(&bind.kind, kind))
    }

    /// The sinks that events are routed to, in the order of their indices.
    pub fn sinks(&self) -> Arc<[Arc<str>]> {
        self.outlets.iter().map(|(sink, _)| sink.clone()).collect()
    }

    /// The topic of an event in a sink, by the sink's index: the first route that fits decides.
    pub fn topic(&self, sink: SinkIx, event: &Event) -> Option<&Arc<str>> {
        let kind = event.message.kind();
        let (_, outlets) = self.outlets.get(sink.place())?;
        let fitting = outlets.iter().find(|outlet| {
            outlet.service.as_ref().is_none_or(|service| *service == event.service) && fits(&outlet.kind, kind)
        });
        fitting.map(|outlet| &outlet.topic)
    }

    /// True if dead letters are also reported by events.
    pub(crate) fn tells_of_dead(&self) -> bool {
        self.tells_of_dead
    }

    /// The rows for the embedded log of a commit's events, commands and messages of other shards' keys: one row for
    /// each shard that is to read some.
    pub(crate) fn log_rows(&self, parts: &[Part], onward: &[(Arc<str>, Message)]) -> Vec<LogRow> {
        let quiet = onward.is_empty() && parts.iter().all(|part| part.sent.is_empty());
        if quiet && self.binds.iter().all(|bind| bind.source != embedded::NAME) {
            return Vec::new();
        }
        let mut routed: Vec<(ShardNo, &str, Message)> = Vec::new();
        let onward = onward.iter().map(|(service, message)| (&**service, message));
        let sent = parts.iter().flat_map(|part| &part.sent);
        let sent = sent.map(|SentMessage { service, message }| (&**service, message));
        for (service, message) in onward.chain(sent) {
            routed.push((shard_of(message.key(), self.shards), service, message.clone()));
        }
        for event in parts.iter().flat_map(|part| &part.events) {
            for bind in self.matching(embedded::NAME, event.message.kind()) {
                let message = self.bound(bind, &event.message);
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

    /// The message as a binding asks for it: under the key that its handler gives it, with an id within its source. One
    /// that the handler cannot read keeps the record's key: it is rejected, with the reason, when its turn comes. An
    /// invalid key is refused when the message is taken; it must not run under another.
    fn bound(&self, bind: &Bind, message: &Message) -> Message {
        let key = match bind.key {
            KeyFrom::Record => None,
            KeyFrom::Handler => self.handlers.key_of(&bind.service, message).ok(),
        };
        let within = bind.id == IdWithin::Source && !message.id_is_within_source();
        if key.is_none() && !within {
            return message.clone();
        }
        let headers: Vec<_> = message.headers().chain(within.then_some((ID_WITHIN, "source"))).collect();
        let draft = Draft {
            id: message.id(),
            key: key.as_ref().map_or(message.key(), |key| shown(key.as_str())),
            kind: message.kind(),
            source: message.source(),
            time: message.time(),
            headers: &headers,
            payload: message.payload(),
        };
        draft.build_unchecked().expect("a frame has room for what was in one, and for a key of that length")
    }
}

/// The reason for which a message's key is invalid. The ledger refuses a missing one: it knows where to keep messages
/// without a key.
fn misnamed(message: &Message) -> Option<String> {
    let key = (!message.key().is_empty()).then(|| check_name("key", message.key().as_bytes()))?;
    key.err().map(|error| error.to_string())
}

/// The part of a key that is kept if it is too long.
fn shown(key: &str) -> &str {
    &key[..key.floor_char_boundary(KEY_SHOWN)]
}

/// True if a route's pattern matches a type; `*` at its end matches any rest.
fn fits(pattern: &str, kind: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == kind, |start| kind.starts_with(start))
}

/// The routes to each sink, in the order in which the settings name sinks first.
fn outlets(settings: &Settings) -> Vec<(Arc<str>, Vec<Outlet>)> {
    let mut outlets: Vec<(Arc<str>, Vec<Outlet>)> = Vec::new();
    let mut add = |sink: &str, outlet: Outlet| match outlets.iter_mut().find(|(name, _)| &**name == sink) {
        Some((_, routes)) => routes.push(outlet),
        None => outlets.push((sink.into(), vec![outlet])),
    };
    let dead_letters = &settings.kafka.dead_letter_topic;
    if !dead_letters.is_empty() {
        // Before the others, so that a route for all types does not take them elsewhere.
        let outlet = Outlet { service: None, kind: DEAD_LETTER.to_owned(), topic: dead_letters.as_str().into() };
        add(DEAD_LETTER_SINK, outlet);
    }
    for publish in &settings.publish {
        let service = (publish.service != "*").then(|| publish.service.as_str().into());
        let outlet = Outlet { service, kind: publish.kind.clone(), topic: publish.topic.as_str().into() };
        add(&publish.sink, outlet);
    }
    outlets
}

/// The sinks that the settings' routes lead to, in the order of their indices.
pub(crate) fn sinks_of(settings: &Settings) -> Vec<Arc<str>> {
    outlets(settings).into_iter().map(|(sink, _)| sink).collect()
}

/// A delivery as the ingress passes it on.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The ordered log within the source.
    pub origin: Arc<str>,
    /// Its place there.
    pub position: Position,
    /// True if it is the last one of its position (a message for several services comes once for each).
    pub last: bool,
    /// The content of the delivery.
    pub what: What,
}

impl Arrival {
    /// The bytes that it takes in memory while it is in hand.
    pub(crate) fn bytes(&self) -> u32 {
        match &self.what {
            What::Message(_, message) | What::Absent(_, _, message) | What::Refused(_, message, _) => {
                u32::try_from(message.frame().len()).unwrap_or(u32::MAX)
            }
            What::Unbound => 0,
        }
    }
}

/// The kinds of deliveries.
#[derive(Clone, Debug)]
pub enum What {
    /// A message for a service, by its index.
    Message(ServiceIx, Message),
    /// A message for a service that this program does not have, with the service's number in the store: other programs
    /// have it, or had it. The message waits for one that does, under the service's name. Without a number no program
    /// ever had it: the message becomes a dead letter.
    Absent(Arc<str>, Option<u16>, Message),
    /// A message that is not run but becomes a dead letter with a reason; of a service, if it could be worked out.
    Refused(Option<ServiceIx>, Message, String),
    /// A message that no binding wants: its position passes.
    Unbound,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::{Fault, Handler, Turn};
    use crate::message::Key;
    use crate::message::Position;

    /// Keys a message by all of its payload.
    struct Keyed;

    impl Handler for Keyed {
        const SERVICE: &'static str = "keyed";
        type Message = String;
        type State = ();

        fn key(&self, message: &String) -> Key {
            message.as_str().into()
        }

        async fn handle(&self, (): &mut (), _: String, _: &mut Turn) -> Result<(), Fault> {
            Ok(())
        }
    }

    fn bindings(bytes_max: usize) -> Bindings {
        let (source, kind, service) = ("kafka".to_owned(), "*".to_owned(), "keyed".to_owned());
        let bind = Bind { source, kind, service, key: KeyFrom::Handler, id: IdWithin::Key };
        let mut settings = Settings { bind: vec![bind], ..Settings::default() };
        settings.ingress.message_bytes_max = bytes_max;
        Bindings::new(&settings, Handlers::new().with(Keyed)).unwrap()
    }

    fn arrival(key: &str) -> What {
        let bindings = bindings(1 << 20);
        let payload = serde_json::to_vec(key).unwrap();
        let message =
            Draft { id: "m", key: "record", kind: "t", payload: &payload, ..Draft::default() }.build().unwrap();
        let content = Content::Unrouted(message);
        let delivery = Delivery { origin: "t/0".into(), position: Position::new(1, 0), content };
        bindings.arrivals("kafka", delivery).remove(0).what
    }

    #[test]
    fn of_what_is_too_large_a_part_is_kept_that_is_never_run() {
        let (bindings, payload) = (bindings(100_000), vec![b'"'; 200_000]);
        let draft = Draft { id: "m", key: "k", kind: "t", source: "s", payload: &payload, ..Draft::default() };
        let message = draft.build().unwrap();
        let arrived = |source: &str, content| {
            let delivery = Delivery { origin: "t/0".into(), position: Position::new(1, 0), content };
            bindings.arrivals(source, delivery).remove(0).what
        };
        for content in [Content::Unrouted(message.clone()), Content::For("keyed".into(), message.clone())] {
            let What::Refused(Some(ServiceIx::FIRST), kept, reason) = arrived("kafka", content) else {
                panic!("it is taken")
            };
            assert_eq!((kept.id(), kept.key(), kept.payload().len()), ("m", "k", KEPT_BYTES));
            assert!(reason.contains(&message.frame().len().to_string()) && reason.contains("65536"), "{reason}");
            // A replay, or another shard's owner, gets it from the store, even if larger messages are taken by then.
            let again = self::bindings(1 << 20).refusal(&kept).unwrap();
            assert!(again.contains(&message.frame().len().to_string()), "{again}");
            assert_eq!(kept.cut().payload(), kept.payload());
        }
        // Messages that handlers wrote are in the store anyway, whole.
        let What::Refused(Some(ServiceIx::FIRST), kept, _) =
            arrived(embedded::NAME, Content::For("keyed".into(), message.clone()))
        else {
            panic!("it is taken")
        };
        assert_eq!(kept, message);
    }

    #[test]
    fn a_key_of_the_handlers_that_is_none_is_never_replaced_by_the_records() {
        assert!(matches!(arrival("own"), What::Message(ServiceIx::FIRST, message) if message.key() == "own"));
        // The ledger refuses what has no key.
        assert!(matches!(arrival(""), What::Message(ServiceIx::FIRST, message) if message.key().is_empty()));
        let long = format!("{}é", "x".repeat(1_023));
        for (bad, part) in [("a\0b", "the key contains a NUL"), (&long, "the key has 1023 bytes")] {
            let What::Refused(None, _, reason) = arrival(bad) else { panic!("{bad:?} is taken") };
            assert!(reason.contains(part), "{reason}");
        }
    }

    #[test]
    fn an_id_is_within_its_source_where_a_binding_says_so_and_stays_so() {
        let (source, kind, service) = ("kafka".to_owned(), "*".to_owned(), "keyed".to_owned());
        let bind = Bind { source, kind, service, key: KeyFrom::Record, id: IdWithin::Source };
        let settings = Settings { bind: vec![bind], ..Settings::default() };
        let bindings = Bindings::new(&settings, Handlers::new().with(Keyed)).unwrap();
        let message =
            Draft { id: "1", key: "k", kind: "t", source: "/till/7", headers: &[("h", "v")], ..Draft::default() };
        let content = Content::Unrouted(message.build().unwrap());
        let delivery = Delivery { origin: "t/0".into(), position: Position::new(1, 0), content };
        let What::Message(_, bound) = bindings.arrivals("kafka", delivery).remove(0).what else {
            panic!("it is taken")
        };
        assert!(bound.id_is_within_source());
        assert_eq!((bound.id(), bound.source(), bound.header("h")), ("1", "/till/7", Some("v")));
        // Passed on to the shard of its key, it is read from the log under the same id.
        let row = bindings.log_rows(&[], &[("keyed".into(), bound.clone())]).remove(0);
        assert_eq!(embedded::decode(row.messages).unwrap()[0].1, bound);
    }
}
