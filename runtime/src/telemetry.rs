//! Logs: their target, their form, and the ids of the messages that they are about; and [`traces`].
//! In: a form and a filter, once per process. Out: lines on standard error, with the ids of messages as fields; spans
//! where the environment names an OTLP endpoint.
//!
//! A JSON line is flat: the fields of the event beside the time and the level, and from the spans around it the ids
//! that tie lines together ([`MessageFields`]).

pub mod traces;

use std::fmt;
use std::io::IsTerminal;

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry};

use crate::clock::{Clock, rfc3339};
use crate::message::Message;
use crate::settings::load::or_near;

/// Fields of spans that every line within them carries.
const INHERITED: [&str; 3] = ["message_id", "saga_id", "trace_id"];

/// Levels of the log, each with those before it.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line, for machines.
    Json,
    /// Text, for people; in colour on a terminal.
    Text,
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
}

/// Reasons why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A filter is not valid.
    #[error("{variable}: the log filter {filter:?} is not one: {reason}")]
    Filter {
        /// The variable that gave it.
        variable: String,
        /// The filter as given.
        filter: String,
        /// The reason why it is not valid.
        reason: String,
    },
    /// Traces cannot be exported.
    #[error("traces cannot be exported: {0}; see the variables OTEL_EXPORTER_OTLP_*, or unset them")]
    Traces(String),
    /// The process has a log already.
    #[error("the log was set up twice: {0}")]
    Twice(#[from] TryInitError),
}

/// Log and traces of a process.
#[derive(Debug, Default)]
#[must_use = "what is left of the traces is exported by its end"]
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    exporter: Option<traces::Exporter>,
}

impl Telemetry {
    /// Exports the spans that are left, for two seconds at most.
    pub async fn end(self) {
        #[cfg(feature = "otlp")]
        if let Some(exporter) = self.exporter {
            // Ending waits for a thread of its own, which needs this thread's runtime.
            tokio::task::spawn_blocking(|| exporter.end()).await.ok();
        }
    }
}

/// Sends the process's log to standard error. The filter is that of the environment's `variable`, else of `RUST_LOG`
/// (an empty one counts as missing), else `filter` (such as `info` or `info,perkey=debug`). If
/// `OTEL_EXPORTER_OTLP_ENDPOINT` is set, traces go there, by gRPC; OpenTelemetry's other variables of exporter and
/// sampler apply. It must be called in a tokio runtime.
pub fn init(format: Format, variable: &str, filter: &str) -> Result<Telemetry, TelemetryError> {
    let of = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| (name.to_owned(), text));
    let asked = of(variable).or_else(|| of("RUST_LOG")).unwrap_or_else(|| ("default".to_owned(), filter.to_owned()));
    let filter = parse(&asked.0, &asked.1)?;
    let terminal = std::io::stderr().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let text = format == Format::Text || format == Format::Auto && terminal;
    let log: Box<dyn Layer<Registry> + Send + Sync> = if text {
        Box::new(log.with_ansi(colour).with_filter(filter))
    } else {
        Box::new(log.fmt_fields(JsonFields::new()).event_format(JsonLines(Clock::system())).with_filter(filter))
    };
    #[cfg_attr(not(feature = "otlp"), expect(unused_mut, reason = "traces are a layer more"))]
    let (mut layers, mut telemetry) = (vec![log], Telemetry::default());
    #[cfg(feature = "otlp")]
    if let Some((layer, exporter)) = traces::layer().map_err(|error| TelemetryError::Traces(error.to_string()))? {
        layers.push(layer);
        telemetry.exporter = Some(exporter);
    }
    tracing_subscriber::registry().with(layers).try_init()?;
    Ok(telemetry)
}

/// Parses a filter. The actor library logs each actor's life, which would be a line per key: it is kept to warnings
/// unless a filter names it.
///
/// A word alone must be a level: as the name of a target it would turn the log of everything else off, and `warning` is
/// mostly meant as a level.
fn parse(variable: &str, filter: &str) -> Result<EnvFilter, TelemetryError> {
    let refused =
        |reason: String| TelemetryError::Filter { variable: variable.to_owned(), filter: filter.to_owned(), reason };
    let words =
        filter.split(',').map(str::trim).filter(|word| !word.is_empty() && !word.contains(['=', '[', '{', ']']));
    if let Some(word) = words.into_iter().find(|word| word.parse::<LevelFilter>().is_err()) {
        let near = or_near(&word.to_lowercase(), LEVELS);
        let levels = LEVELS.join(", ");
        let how = format!("{word:?} is not a level: {levels}{near} (of one target: {word}=info)");
        return Err(refused(how));
    }
    EnvFilter::builder().parse(format!("ractor=warn,lapin=off,{filter}")).map_err(|error| {
        refused(format!("{error}; it is a level ({}), or such as info,perkey=debug", LEVELS.join(", ")))
    })
}

/// The ids by which a line about a message can be found.
///
/// ```
/// # use perkey::unstable::telemetry::MessageFields;
/// # fn example(message: &perkey::Message) {
/// let MessageFields { message_id, saga_id, trace_id } = MessageFields::of(message);
/// tracing::warn!(message_id, saga_id, trace_id, attempt = 3, "turn will be retried");
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageFields<'a> {
    /// The message's id.
    pub message_id: &'a str,
    /// The saga it belongs to: its header `sagaid`.
    pub saga_id: Option<&'a str>,
    /// The trace it belongs to, out of its header `traceparent`.
    pub trace_id: Option<&'a str>,
}

impl<'a> MessageFields<'a> {
    /// The ids of `message`.
    pub fn of(message: &'a Message) -> Self {
        Self {
            message_id: message.id(),
            saga_id: message.header("sagaid"),
            trace_id: message.header("traceparent").and_then(trace_id),
        }
    }
}

/// The trace id of a W3C `traceparent` (`version-trace-parent-flags`), or `None` when it is not one.
pub fn trace_id(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lengths = [version, trace, parent, flags].map(str::len) == [2, 32, 16, 2];
    let hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let set = |part: &str| part.bytes().any(|byte| byte != b'0');
    // A later version may append parts; version 00 has exactly four, and ff is forbidden.
    let known = version != "ff" && (version != "00" || parts.next().is_none());
    let valid = lengths && known && [version, trace, parent, flags].into_iter().all(hex) && set(trace) && set(parent);
    valid.then_some(trace)
}

/// Writes an event as one flat JSON object.
#[derive(Debug)]
struct JsonLines(Clock);

#[derive(Serialize)]
struct JsonLine<'a> {
    timestamp: String,
    level: &'a str,
    target: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Value>,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

impl<S> FormatEvent<S, JsonFields> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields(Map::new());
        // From the outermost span inwards, then the event: the nearest one wins.
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let Some(said) = extensions.get::<FormattedFields<JsonFields>>() else { continue };
            let Ok(mut said) = serde_json::from_str::<Map<String, Value>>(said) else { continue };
            for name in INHERITED {
                if let Some(value) = said.remove(name) {
                    fields.0.insert(name.to_owned(), value);
                }
            }
        }
        event.record(&mut fields);
        let line = JsonLine {
            timestamp: rfc3339(self.0.now()),
            level: event.metadata().level().as_str(),
            target: event.metadata().target(),
            message: fields.0.remove("message"),
            fields: fields.0,
        };
        writeln!(writer, "{}", serde_json::to_string(&line).map_err(|_| fmt::Error)?)
    }
}

/// Collects the fields of an event as JSON values.
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        // The line itself uses these names.
        let name = match field.name() {
            "timestamp" => "field_timestamp",
            "level" => "field_level",
            "target" => "field_target",
            name => name,
        };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use tracing::{debug, info, info_span, warn};

    use super::*;
    use crate::message::Draft;

    const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `act` logs as JSON under `filter`.
    fn logged(filter: &str, act: impl FnOnce()) -> Vec<Map<String, Value>> {
        let (sink, clock) = (Sink::default(), Clock::manual(1_000));
        clock.advance(Duration::from_millis(500));
        let writer = sink.clone();
        let log = tracing_subscriber::fmt()
            .with_env_filter(parse("X_LOG", filter).unwrap())
            .with_writer(move || writer.clone())
            .fmt_fields(JsonFields::new())
            .event_format(JsonLines(clock))
            .finish();
        tracing::subscriber::with_default(log, act);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn message(headers: &[(&str, &str)]) -> Message {
        Draft { id: "m-1", key: "acct-1", kind: "posted", headers, ..Draft::default() }.build().unwrap()
    }

    #[test]
    fn a_line_is_flat_and_carries_the_messages_ids() {
        let message = message(&[("sagaid", "s-1"), ("traceparent", TRACEPARENT)]);
        let lines = logged("info", || {
            let MessageFields { message_id, saga_id, trace_id } = MessageFields::of(&message);
            warn!(message_id, saga_id, trace_id, attempt = 3, late = true, "turn will be retried");
        });
        let expected = serde_json::json!({
            "timestamp": "1970-01-01T00:00:01.5Z",
            "level": "WARN",
            "target": "perkey::telemetry::tests",
            "message": "turn will be retried",
            "message_id": "m-1",
            "saga_id": "s-1",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "attempt": 3,
            "late": true,
        });
        assert_eq!(lines, [expected.as_object().unwrap().clone()]);
    }

    #[test]
    fn ids_that_a_message_has_not_are_left_out() {
        let message = message(&[]);
        let lines = logged("info", || {
            let MessageFields { message_id, saga_id, trace_id } = MessageFields::of(&message);
            info!(message_id, saga_id, trace_id, "seen");
        });
        assert_eq!(lines[0]["message_id"], "m-1");
        assert!(!lines[0].contains_key("saga_id") && !lines[0].contains_key("trace_id"), "{lines:?}");
    }

    #[test]
    fn ids_are_inherited_from_spans_and_nothing_else_is() {
        let lines = logged("info", || {
            let _outer = info_span!("outer", message_id = "m-1", saga_id = "s-1", noise = 1).entered();
            let _inner = info_span!("inner", message_id = "m-2").entered();
            info!("within");
            info!(message_id = "m-3", "its own");
        });
        assert_eq!((&lines[0]["message_id"], &lines[0]["saga_id"]), (&"m-2".into(), &"s-1".into()));
        assert!(!lines[0].contains_key("noise"), "{lines:?}");
        assert_eq!(lines[1]["message_id"], "m-3");
    }

    #[test]
    fn a_field_cannot_replace_the_level() {
        let lines = logged("info", || info!(level = "none", "seen"));
        assert_eq!((&lines[0]["level"], &lines[0]["field_level"]), (&"INFO".into(), &"none".into()));
    }

    #[test]
    fn the_actor_library_is_quiet_unless_it_is_named() {
        let act = || {
            info!(target: "ractor", "an actor started");
            debug!(target: "ractor::actor", "more");
            warn!(target: "ractor", "trouble");
        };
        assert_eq!(logged("debug", act).len(), 1);
        assert_eq!(logged("warn,ractor=debug", act).len(), 3);
    }

    #[test]
    fn a_filter_that_is_none_is_refused_with_its_text() {
        let error = parse("X_LOG", "perkey=loud").unwrap_err().to_string();
        assert!(error.contains("\"perkey=loud\""), "{error}");
    }

    #[test]
    fn trace_ids_are_taken_from_valid_parents_only() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_id(TRACEPARENT), Some(trace));
        assert_eq!(trace_id(&format!("01-{trace}-00f067aa0ba902b7-01-more")), Some(trace));
        for wrong in [
            String::new(),
            "00-1-2-01".to_owned(),
            format!("ff-{trace}-00f067aa0ba902b7-01"),
            format!("00-{trace}-00f067aa0ba902b7-01-more"),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
        ] {
            assert_eq!(trace_id(&wrong), None, "{wrong}");
        }
    }
}
