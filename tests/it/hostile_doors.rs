//! Whatever a stranger sends to a front door, the process lives, answers, and says no problem of its own making.
//! In: requests that are garbled, nested, huge, full of headers, from a seed. Out: an answer to each, below 500, and the doors open.
//!
//! `PERKEY_SEED` repeats a run, `PERKEY_HOSTILE` says how many requests each door gets.

use std::time::Duration;

use bytes::Bytes;
use perkey::unstable::clock::{Dice, since_boot};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};

use crate::attacks::Raw;
use crate::contract::{Kind, Scene};
use crate::hostile::{asked, garbage, text};

const SOON: Duration = Duration::from_secs(30);

fn one<'a>(dice: &mut Dice, all: &[&'a str]) -> &'a str {
    all[dice.below(all.len() as u64) as usize]
}

struct Run {
    scene: Scene,
    dice: Dice,
    seed: u64,
    requests: u64,
}

impl Run {
    async fn new() -> Self {
        let seed = asked("PERKEY_SEED", since_boot());
        let scene = Scene::new(Kind::Sqlite, &[]).await;
        Self { scene, dice: Dice::seeded(seed), seed, requests: asked("PERKEY_HOSTILE", 400) }
    }

    /// The doors are open, for others and for the one that sent this.
    async fn lives(&self, sent: &dyn std::fmt::Debug) {
        let url = format!("{}/api/accounts/none", self.scene.http);
        let answer = timeout(SOON, reqwest::get(url)).await;
        let status = answer.ok().and_then(Result::ok).map(|answer| answer.status().as_u16());
        assert_eq!(status, Some(404), "PERKEY_SEED={}: after {:.2000}", self.seed, format!("{sent:?}"));
    }

    async fn end(self) {
        self.scene.end().await;
    }
}

/// A request to the REST door, as bytes.
fn request(dice: &mut Dice) -> Vec<u8> {
    let method = one(dice, &["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "X", "get", ""]);
    let paths = [
        "/api/orders",
        "/api/transactions",
        "/api/transactions/%00",
        "/api/orders/%ff/complete",
        "/api/orders/../x",
        "/charge",
        "/api/accounts/a?limit=-1&after=%e2%80%ae",
        "/api/transactions?account=a&limit=99999999999999999999",
        "/graphql",
        "//",
        "*",
        "/api/expenses?account=&account=",
        "/api/problems/x",
        "/%",
        "/api/orders?%=%&=&&",
    ];
    let mut head = format!("{method} {} HTTP/1.1\r\nhost: localhost\r\n", one(dice, &paths)).into_bytes();
    let names = [
        "idempotency-key",
        "content-type",
        "authorization",
        "traceparent",
        "tracestate",
        "expect",
        "accept",
        "x",
        "content-encoding",
        "upgrade",
        "te",
        "if-none-match",
        "transfer-encoding",
        "origin",
        "baggage",
    ];
    for _ in 0..[0, 1, 4, 90][dice.below(4) as usize] {
        let mut value = match dice.below(4) {
            0 => garbage(dice, 200),
            1 => text(dice).into_bytes(),
            2 => b"\"8e03978e-40d5-43dd-bc93-6894a57f9324\", \"x".to_vec(),
            _ => one(dice, &["application/json", "application/json; charset=utf-7", "100-continue", "gzip", "chunked"])
                .into(),
        };
        value.retain(|byte| !b"\r\n".contains(byte));
        value.truncate(4_000);
        head.extend([one(dice, &names).as_bytes(), b": ", &value, b"\r\n"].concat());
    }
    let mut body = text(dice).into_bytes();
    body.truncate(200_000);
    if dice.below(2) == 0 {
        head.extend(
            format!("content-type: application/json\r\nidempotency-key: \"{}\"\r\n", dice.below(9)).into_bytes(),
        );
    }
    let said = if dice.below(8) == 0 {
        one(dice, &["-1", "1e3", "99999999999999999999", "0x10"]).to_owned()
    } else {
        body.len().to_string()
    };
    head.extend(format!("content-length: {said}\r\nconnection: close\r\n\r\n").into_bytes());
    if dice.below(10) == 0 {
        let at = dice.below(head.len() as u64) as usize;
        head[at] = dice.below(256) as u8;
    }
    [head, body].concat()
}

/// The status that is answered; none where the connection ends without one.
async fn raw(address: &str, bytes: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut said = Vec::new();
    let (mut reads, mut writes) = stream.split();
    // Who refuses a head reads no body: both at once, and neither end need come to its end.
    let sent = async {
        let _ = writes.write_all(bytes).await;
        let _ = writes.shutdown().await;
    };
    let answered = async {
        let _ = reads.read_to_end(&mut said).await;
    };
    timeout(SOON, async { tokio::join!(sent, answered) }).await.expect("it is answered or refused");
    let line = String::from_utf8_lossy(&said[..said.len().min(20)]).into_owned();
    line.split(' ').nth(1).and_then(|status| status.parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_of_rest_ends_the_process_or_is_an_error_of_its_own() {
    let mut run = Run::new().await;
    let address = run.scene.http.strip_prefix("http://").unwrap().to_owned();
    for _ in 0..run.requests {
        let bytes = request(&mut run.dice);
        let status = raw(&address, &bytes).await;
        let shown = String::from_utf8_lossy(&bytes);
        // Without a provider a charge cannot be made: that is said as 501.
        let own = status.is_some_and(|status| status >= 500 && ![501, 505].contains(&status));
        assert!(!own, "PERKEY_SEED={}: {status:?} to {shown:.2000}", run.seed);
    }
    run.lives(&"all of them").await;
    run.end().await;
}

/// A document of GraphQL, mostly an invalid one.
fn document(dice: &mut Dice) -> String {
    let deep = [1, 8, 31, 200, 2_000, 100_000][dice.below(6) as usize];
    let doubling = |levels: u64| {
        let more = (1..levels)
            .map(|n| format!("fragment f{n} on Query {{ ...f{0} ...f{0} }}", n + 1))
            .collect::<Vec<_>>()
            .join(" ");
        format!("{{ ...f1 }} {more} fragment f{levels} on Query {{ account(id: \"a\") {{ n }} }}")
    };
    let pieces = [
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "!",
        "$v",
        ":",
        "=",
        "@skip(if: true)",
        "...",
        "on",
        "fragment F on Query",
        "query Q",
        "mutation",
        "subscription",
        "account(id: \"a\")",
        "{ n }",
        "\"\"\"",
        "\"",
        "\\u0000",
        "#",
        "\n",
        "-",
        "1e400",
        "&",
        "|",
        "__typename",
        "F",
        "null",
        "\u{feff}",
        "{__schema{types{name}}}",
        "@include(if: $v)",
    ];
    match dice.below(9) {
        0 => format!("{{ account(id: {}{}) {{ n }} }}", "[".repeat(deep), "]".repeat(deep)),
        1 => format!("query($v: Int = {}1{}) {{ account(id: \"a\") {{ n }} }}", "{a:".repeat(deep), "}".repeat(deep)),
        2 => format!("{}n{}", "{ account(id: \"a\") ".repeat(deep), "}".repeat(deep)),
        3 => format!("query($v: {}Int{}) {{ __typename }}", "[".repeat(deep), "]".repeat(deep)),
        4 => doubling(8 + dice.below(40)),
        5 => "{ ...a } fragment a on Query { ...b } fragment b on Query { ...a }".to_owned(),
        6 => format!(
            "{{ {} }}",
            (0..deep.min(5_000)).map(|n| format!("a{n}: account(id: \"a\") {{ n }} ")).collect::<String>()
        ),
        7 => format!("{{ account(id: \"{}\") {{ n }} }}", "[{(".repeat(deep.min(3_000))),
        _ => (0..dice.below(60)).map(|_| one(dice, &pieces)).collect::<Vec<_>>().join(" "),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_document_of_graphql_ends_the_process_or_is_an_error_of_its_own() {
    let mut run = Run::new().await;
    let client = reqwest::Client::new();
    for _ in 0..run.requests {
        let (mut query, deep) = (document(&mut run.dice), [1, 40, 2_000][run.dice.below(3) as usize]);
        query.truncate(query.floor_char_boundary(200_000));
        let variables = match run.dice.below(4) {
            0 => format!("{{\"v\":{}{}}}", "[".repeat(deep), "]".repeat(deep)),
            1 => text(&mut run.dice),
            _ => "{}".to_owned(),
        };
        let body = format!("{{\"query\":{},\"variables\":{variables}}}", Value::from(query));
        let sent = client
            .post(format!("{}/graphql", run.scene.http))
            .header("content-type", "application/json")
            .body(body.clone());
        let answer = timeout(SOON, sent.send()).await.expect("it is answered");
        let status = answer.map(|answer| answer.status().as_u16());
        assert!(
            status.as_ref().is_ok_and(|status| *status < 500),
            "PERKEY_SEED={}: {status:?} to {body:.2000}",
            run.seed
        );
    }
    run.lives(&"all of them").await;
    run.end().await;
}

/// A message of protobuf, mostly an invalid one.
fn message(dice: &mut Dice) -> Vec<u8> {
    let deep = [10, 99, 101, 5_000, 100_000][dice.below(5) as usize];
    match dice.below(6) {
        0 => garbage(dice, 500),
        // Groups that are never closed; messages within messages; a length that is not there.
        1 => vec![0x0b; deep],
        2 => vec![0x1b; deep].into_iter().chain(vec![0x1c; deep]).collect(),
        3 => vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
        4 => [&[0x0a, 0x80, 0x80, 0x04][..], &vec![b'['; 65_536]].concat(),
        _ => [&[0x0a, 3][..], b"\xff\xfe\0", &garbage(dice, 40)].concat(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_of_grpc_ends_the_process_or_is_an_error_of_its_own() {
    let mut run = Run::new().await;
    let channel = tonic::transport::Channel::from_shared(run.scene.grpc.clone()).unwrap().connect().await.unwrap();
    let methods = [
        "/budget.v1.Orders/PlaceOrder",
        "/budget.v1.Transactions/PostTransaction",
        "/budget.v1.Transactions/GetTransaction",
        "/budget.v1.Payments/Charge",
        "/budget.v1.Checkouts/StartCheckout",
        "/budget.v1.Orders/ListOrders",
        "/budget.v1.Nobody/Is",
        "/x",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.health.v1.Health/Check",
    ];
    for _ in 0..run.requests {
        let (path, bytes) = (one(&mut run.dice, &methods), message(&mut run.dice));
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.unwrap();
        let mut request = Request::new(Bytes::from(bytes.clone()));
        if run.dice.below(2) == 0 {
            request.metadata_mut().insert("idempotency-key", run.dice.below(9).to_string().parse().unwrap());
        }
        let called = client.unary(request, PathAndQuery::from_static(path), Raw);
        let code =
            timeout(SOON, called).await.expect("it is answered").map_or_else(|status| status.code(), |_| Code::Ok);
        let own = [Code::Unknown, Code::DataLoss].contains(&code);
        assert!(!own, "PERKEY_SEED={}: {code:?} of {path} to {bytes:.500?}", run.seed);
    }
    run.lives(&json!("all of them")).await;
    run.end().await;
}
