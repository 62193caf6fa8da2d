//! Traces: spans of requests, turns, commits, publications and restarts, exported by OTLP.
//! In: `traceparent` of messages; events of their lives. Out: spans, each tied to the one that caused it.
//!
//! Only parts of a sampled trace have spans: a message without a `traceparent`, or whose trace is not sampled, costs
//! nothing. Without an exporter there are no spans. Names and attributes follow OpenTelemetry's conventions for
//! messaging (1.44): a turn is `process`, its parent the span that made the message; a commit is of many turns, so it
//! has links.

use tracing::Span;

use crate::message::{Message, ShardNo};
use crate::store::Commit;

/// The most turns that a commit's span is linked to.
#[cfg(feature = "otlp")]
const LINKS_MAX: usize = 64;

#[cfg(feature = "otlp")]
pub(super) use self::exported::{Exporter, layer};

/// The span of a request that a front door serves. Its parent is the client's span, if the request names one.
pub fn request(method: &str, route: &str, traceparent: Option<&str>) -> Span {
    #[cfg(feature = "otlp")]
    if exported::is_on() {
        let span = tracing::info_span!(
            target: exported::TARGET, "request", otel.name = format!("{method} {route}"), otel.kind = "server",
            http.response.status_code = tracing::field::Empty, otel.status_code = tracing::field::Empty,
        );
        return exported::under(span, traceparent);
    }
    let _ = (method, route, traceparent);
    Span::none()
}

/// Records that a request was answered with this HTTP status; from 500 on it failed.
pub fn answered(span: &Span, status: u16) {
    span.record("http.response.status_code", status);
    if status >= 500 {
        span.record("otel.status_code", "ERROR");
    }
}

/// The span of a turn; its parent is the span that made its message.
pub(crate) fn turn(service: &str, message: &Message, attempt: u32) -> Span {
    #[cfg(feature = "otlp")]
    if let Some(parent) = exported::sampled(message) {
        let span = tracing::info_span!(
            target: exported::TARGET, "process", otel.name = format!("process {service}"), otel.kind = "consumer",
            messaging.system = "perkey", messaging.operation.name = "process", messaging.operation.type = "process",
            messaging.destination.name = service, messaging.message.id = message.id(), perkey.message.type = message.kind(),
            perkey.attempt = attempt, otel.status_code = tracing::field::Empty,
            otel.status_description = tracing::field::Empty,
        );
        return exported::under(span, Some(parent));
    }
    let _ = (service, message, attempt);
    Span::none()
}

/// Records that the work of a span failed.
pub(crate) fn failed(span: &Span, error: &str) {
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", error);
}

/// The span of a commit, linked to the turns in it that sent something out.
pub(crate) fn commit(commit: &Commit) -> Span {
    #[cfg(feature = "otlp")]
    if exported::is_on() {
        let events = commit.events().map(|event| &event.message);
        let sent = commit.parts.iter().flat_map(|part| &part.sent).map(|sent| &sent.message);
        let mut parents: Vec<&str> = events.chain(sent).filter_map(exported::sampled).collect();
        parents.sort_unstable();
        parents.dedup();
        if parents.is_empty() {
            return Span::none();
        }
        let span = tracing::info_span!(
            target: exported::TARGET, "commit", otel.name = "commit", otel.kind = "client", perkey.shard = commit.shard,
            perkey.commit_no = commit.no, perkey.epoch = commit.epoch, messaging.batch.message_count = parents.len(),
        );
        exported::link(&span, parents.into_iter().take(LINKS_MAX));
        return span;
    }
    let _ = commit;
    Span::none()
}

/// The span of an event that is handed to a sink; its parent is the turn that emitted it.
pub(crate) fn send(sink: &str, topic: &str, message: &Message) -> Span {
    #[cfg(feature = "otlp")]
    if let Some(parent) = exported::sampled(message) {
        let span = tracing::info_span!(
            target: exported::TARGET, "send", otel.name = format!("send {topic}"), otel.kind = "producer",
            messaging.system = sink, messaging.operation.name = "send", messaging.operation.type = "send",
            messaging.destination.name = topic, messaging.message.id = message.id(),
        );
        return exported::under(span, Some(parent));
    }
    let _ = (sink, topic, message);
    Span::none()
}

/// The span of a restart, linked to the turn that caused it.
pub(crate) fn restart(child: &'static str, shard: ShardNo, reason: &'static str, cause: Option<&str>) -> Span {
    let id = cause.and_then(super::trace_id);
    #[cfg(feature = "otlp")]
    if exported::is_on() {
        let span = tracing::info_span!(
            target: exported::TARGET, "restart", otel.name = format!("restart {child}"), otel.kind = "internal",
            child, shard, reason, trace_id = id, otel.status_code = "ERROR",
        );
        exported::link(&span, cause.into_iter());
        return span;
    }
    tracing::info_span!("restart", child, shard, reason, trace_id = id)
}

/// The `traceparent` for work that a span causes; `None` if the span is not exported.
pub fn traceparent(span: &Span) -> Option<String> {
    #[cfg(feature = "otlp")]
    return exported::traceparent(span);
    #[cfg(not(feature = "otlp"))]
    {
        let _ = span;
        None
    }
}

#[cfg(feature = "otlp")]
mod exported {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider};
    use opentelemetry::{Context, KeyValue};
    use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
    use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithTonicConfig};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing::Span;
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::filter::filter_fn;
    use tracing_subscriber::{Layer, Registry};

    use crate::message::Message;
    use crate::telemetry::trace_id;

    /// The target of all exported spans: no others are exported.
    pub(super) const TARGET: &str = "perkey::trace";
    /// The time for exporting the remaining spans when the process ends.
    const SHUTDOWN: Duration = Duration::from_secs(2);
    /// Variables that name the target of traces.
    const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

    static ON: AtomicBool = AtomicBool::new(false);

    /// The exporter of spans.
    #[derive(Debug)]
    pub(in crate::telemetry) struct Exporter(SdkTracerProvider);

    impl Exporter {
        /// Exports the spans that are left.
        pub(in crate::telemetry) fn end(self) {
            ON.store(false, Ordering::Release);
            if let Err(error) = self.0.shutdown_with_timeout(SHUTDOWN) {
                tracing::debug!(%error, "not all spans were exported");
            }
        }
    }

    /// A layer, and the exporter to end with the process.
    type Exported = (Box<dyn Layer<Registry> + Send + Sync>, Exporter);

    /// The layer that exports, if the environment names an endpoint; or the reason why it cannot be made.
    pub(in crate::telemetry) fn layer() -> Result<Option<Exported>, ExporterBuildError> {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let off = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
        if off || !ENDPOINTS.iter().any(|name| set(name)) {
            return Ok(None);
        }
        let mut exporter = SpanExporter::builder().with_tonic();
        let endpoint = ENDPOINTS.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        if endpoint.is_some_and(|endpoint| endpoint.starts_with("https://")) {
            // Without this it would trust no certificate at all.
            exporter = exporter.with_tls_config(ClientTlsConfig::new().with_native_roots());
        }
        let exporter = exporter.build()?;
        let mut resource = Resource::builder();
        if !set("OTEL_SERVICE_NAME") {
            resource = resource.with_service_name(program());
        }
        let resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("perkey"));
        let layer = layer.with_location(false).with_threads(false).with_tracked_inactivity(false);
        let layer = layer.with_filter(filter_fn(|span| span.is_span() && span.target() == TARGET));
        ON.store(true, Ordering::Release);
        Ok(Some((Box::new(layer), Exporter(provider))))
    }

    fn program() -> String {
        let name = std::env::current_exe().ok().and_then(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
        name.unwrap_or_else(|| "perkey".to_owned())
    }

    pub(super) fn is_on() -> bool {
        ON.load(Ordering::Acquire)
    }

    /// The `traceparent` of a message whose trace is sampled and exported.
    pub(super) fn sampled(message: &Message) -> Option<&str> {
        if !is_on() {
            return None;
        }
        message.header("traceparent").filter(|parent| context(parent).is_some_and(|parent| parent.is_sampled()))
    }

    fn context(traceparent: &str) -> Option<SpanContext> {
        let trace = trace_id(traceparent)?;
        let mut rest = traceparent.split('-').skip(2);
        let (span, flags) = (rest.next()?, rest.next()?);
        let trace = TraceId::from_hex(trace).ok()?;
        let (span, flags) = (SpanId::from_hex(span).ok()?, u8::from_str_radix(flags, 16).ok()?);
        Some(SpanContext::new(trace, span, TraceFlags::new(flags), true, TraceState::default()))
    }

    /// Places the span below another one.
    pub(super) fn under(span: Span, traceparent: Option<&str>) -> Span {
        if let Some(parent) = traceparent.and_then(context) {
            // This fails only for a span that is not exported.
            span.set_parent(Context::new().with_remote_span_context(parent)).ok();
        }
        span
    }

    pub(super) fn link<'a>(span: &Span, to: impl Iterator<Item = &'a str>) {
        to.filter_map(context).for_each(|context| span.add_link(context));
    }

    pub(super) fn traceparent(span: &Span) -> Option<String> {
        if span.is_disabled() {
            return None;
        }
        let context = span.context();
        let span = context.span();
        let own = span.span_context();
        own.is_valid().then(|| format!("00-{}-{}-{:02x}", own.trace_id(), own.span_id(), own.trace_flags().to_u8()))
    }
}
