//! One connected trace from a request to the last handler, as an OTLP receiver gets it.
//! In: a real process with a receiver of its own, Kafka between two handlers. Out: spans, their parents and links.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::{Span, status::StatusCode};
use perkey_chaos::process::{self, Place, until};
use serde_json::json;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::kafka_topic::Topic;

const BOUND: Duration = Duration::from_secs(60);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// All spans that were exported so far.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        self.0.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Receiver {
    /// The spans by name, of the one trace and of those that are linked to it.
    fn named(&self) -> HashMap<String, Span> {
        self.0.lock().unwrap().iter().map(|span| (span.name.clone(), span.clone())).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A process that exports to a receiver, with Kafka between postings and balances.
async fn traced(secure: bool, post: impl AsyncFnOnce(&str) -> u16, wanted: &[&str]) -> HashMap<String, Span> {
    let receiver = Receiver::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scheme = if secure { "https" } else { "http" };
    let endpoint = format!("{scheme}://{}", listener.local_addr().unwrap());
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let mut server = Server::builder();
    if secure {
        let identity = Identity::from_pem(made.cert.pem(), made.signing_key.serialize_pem());
        server = server.tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
    }
    let serving =
        server.add_service(TraceServiceServer::new(receiver.clone())).serve_with_incoming(TcpIncoming::from(listener));
    let mut receiving = tokio::task::JoinSet::new();
    receiving.spawn(serving);

    let binary = tokio::task::spawn_blocking(process::built).await.unwrap().unwrap();
    let (folder, topic) = (tempfile::tempdir().unwrap(), Topic::new(8).await);
    let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let settings = format!(
        "[kafka]\nbrokers = \"{}\"\ntopics = [\"{name}\"]\n\n[admin]\nlisten = \"127.0.0.1:0\"\n\n\
         \
         [[publish]]\nservice = \"transactions\"\ntype = \"transaction.posted\"\nsink = \"kafka\"\ntopic = \"{name}\"\n\n\
         [[bind]]\nsource = \"kafka\"\ntype = \"transaction.posted\"\nservice = \"balances\"\n",
        crate::servers::kafka(),
        name = topic.name
    );
    std::fs::write(folder.path().join("traced.toml"), settings).unwrap();
    let place = Place::new(&binary, folder.path());
    let listens = format!("gateway.listen={listen}");
    let mut command = place.command(&["up", "--config", "traced.toml", "--set", &listens]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "50");
    if secure {
        std::fs::write(folder.path().join("ca.pem"), made.cert.pem()).unwrap();
        command.env("SSL_CERT_FILE", folder.path().join("ca.pem"));
    }
    let log = std::fs::File::create(folder.path().join("up.log")).unwrap();
    let mut up = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let listens = async || tokio::net::TcpStream::connect(&listen).await.is_ok();
    until("it does not listen", BOUND, listens)
        .await
        .map_err(|error| format!("{error}: {}", place.tail("up.log")))
        .unwrap();

    let status = post(&listen).await;
    assert_eq!(status, 201, "{}", place.tail("up.log"));
    let all = async || wanted.iter().all(|name| receiver.named().contains_key(*name));
    let came = until("spans are missing", BOUND, all).await;
    assert!(came.is_ok(), "{:?}: {}", receiver.named().keys(), place.tail("up.log"));
    up.kill().await.unwrap();
    receiver.named()
}

async fn post(listen: &str, traceparent: &str) -> u16 {
    let body = json!({ "account": "a-1", "amount": 1250, "currency": "USD" });
    let request = reqwest::Client::new().post(format!("http://{listen}/api/transactions")).json(&body);
    request.header("traceparent", traceparent).send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_without_tls_gets_spans_too() {
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    let wanted = ["POST /api/transactions"];
    assert!(!traced(false, async |listen| post(listen, &traceparent).await, &wanted).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_one_trace_through_turn_commit_broker_and_the_next_turn() {
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    let server = "POST /api/transactions";
    let wanted = [server, "process transactions", "commit", "process balances"];
    let spans = traced(true, async |listen| post(listen, &traceparent).await, &wanted).await;
    let send = spans.keys().find(|name| name.starts_with("send ")).expect("the event was published").clone();
    let [request, turn, next, send] =
        [server, "process transactions", "process balances", &send].map(|name| &spans[name]);
    for span in [request, turn, next, send] {
        assert_eq!(hex(&span.trace_id), TRACE, "{} is of another trace", span.name);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    }
    assert_eq!(hex(&request.parent_span_id), PARENT, "the client's span is the request's parent");
    assert_eq!(turn.parent_span_id, request.span_id);
    assert_eq!(send.parent_span_id, turn.span_id);
    assert_eq!(next.parent_span_id, turn.span_id, "across the broker");
    let kinds = [SpanKind::Server, SpanKind::Consumer, SpanKind::Producer, SpanKind::Consumer].map(|kind| kind as i32);
    assert_eq!([request.kind, turn.kind, send.kind, next.kind], kinds);
    // The commit is of many turns: it is linked to them.
    let commit = &spans["commit"];
    let linked = commit.links.iter().any(|link| link.span_id == turn.span_id && hex(&link.trace_id) == TRACE);
    assert!(linked || commit.links.iter().any(|link| link.span_id == next.span_id), "{:?}", commit.links);
    assert!(
        spans.values().all(|span| span.status.as_ref().is_none_or(|status| status.code != StatusCode::Error as i32))
    );
}
