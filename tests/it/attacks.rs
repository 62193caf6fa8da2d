//! Requests and messages that are meant to end the process, to fill its memory or to keep others out: they are refused,
//! and the process goes on.
//! In: requests as an attacker writes them, to the real binary. Out: a refusal for each, and `/livez` answers.

use std::time::Duration;

use budget_actors::{App, Checkouts, Provider, handlers};
use bytes::{Buf, BufMut, Bytes};
use perkey::unstable::handler::named_once;
use perkey::{Payload, Protobuf};
use perkey_chaos::process::until;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::cli::Cli;
use crate::contract::{Kind, Scene};

/// The depth of nesting that would end a process which follows it on its stack.
const DEEP: usize = 100_000;

/// Sends a document; returns status and answer.
async fn graphql(scene: &Scene, query: &str, variables: &str) -> (u16, Value) {
    let body = format!(r#"{{"query":{},"variables":{variables}}}"#, json!(query));
    let request = Client::new().post(format!("{}/graphql", scene.http)).header("content-type", "application/json");
    let response = request.body(body).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn lives(scene: &Scene) {
    let place = format!("{}/livez", scene.admin().await);
    let answer = Client::builder().timeout(Duration::from_secs(10)).build().unwrap().get(place).send().await;
    assert_eq!(answer.unwrap().text().await.unwrap(), "alive\n");
}

/// The JSON, or the list of a document, that is so deep.
fn nested(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

/// Fragments of which each spreads the next one so often.
fn spread(levels: usize, times: usize) -> String {
    let links: String = (0..levels)
        .map(|at| format!("fragment F{at} on Query{{{}}}", format!("...F{} ", at + 1).repeat(times)))
        .collect();
    format!("{{...F0}}{links}fragment F{levels} on Query{{account(account:\"a\"){{n}}}}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_that_are_nested_or_spread_without_end_end_no_process() {
    let scene = Scene::new(Kind::Sqlite, &[]).await;
    let (brackets, closed) = ("[".repeat(7_000), nested(3_500));
    let documents = [
        format!("{{order(id:{closed}){{id}}}}"),
        format!("{{order(id:{brackets}"),
        format!("query($v:[Int]={closed}){{order(id:\"a\"){{id}}}}"),
        format!("query($v:{brackets}Int){{order(id:\"a\"){{id}}}}"),
        format!("{{order(id:\"a\")@skip(if:{closed}){{id}}}}"),
        // Two empty strings: what looks like a block string does not end.
        format!("{{order(id:[\"\"\"\",{closed}]){{id}}}}"),
        format!("{{order(id:{}1{}){{id}}}}", "{a:".repeat(3_000), "}".repeat(3_000)),
        "{order".repeat(2_000),
        "{...".repeat(4_000),
        spread(32, 2),
        spread(22, 2),
        spread(31, 3),
        "{...A}fragment A on Query{...B ...B}fragment B on Query{...A ...A}".to_owned(),
        format!("{{order(id:\"a\"){{id}}}}{}", spread(500, 1).split_once('}').unwrap().1),
        format!("{{{}}}", "order(id:\"a\"){id}".repeat(800)),
    ];
    for document in documents {
        let (status, told) = graphql(&scene, &document, "{}").await;
        assert_eq!((status, &told["errors"][0]["extensions"]["code"]), (400, &json!("malformed")), "{document:.60}");
    }
    for variables in [nested(DEEP), format!("{{\"v\":{}}}", nested(DEEP)), "{\"v\":".repeat(DEEP), "[".repeat(DEEP)] {
        let (status, told) = graphql(&scene, "query($v:[Int]){order(id:\"a\"){id}}", &variables).await;
        assert_eq!((status, &told["errors"][0]["extensions"]["code"]), (400, &json!("malformed")), "{variables:.60}");
    }
    lives(&scene).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_and_messages_that_are_nested_without_end_end_no_process() {
    let scene = Scene::new(Kind::Sqlite, &[]).await;
    let client = Client::new();
    for body in [nested(DEEP), "{\"memo\":".repeat(DEEP), format!("{{\"memo\":{}}}", nested(DEEP))] {
        for path in ["/api/transactions", "/api/orders", "/charge", "/graphql"] {
            let request = client.post(format!("{}{path}", scene.http)).header("content-type", "application/json");
            let answer = request.header("idempotency-key", "k").body(body.clone()).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), 400, "{path} {body:.20}");
        }
    }
    let deep = format!("{}?account={}", scene.http, "%5B".repeat(10_000));
    let answer = client.get(deep.replace('?', "/api/orders?")).header("traceparent", "[".repeat(10_000)).send().await;
    assert!(!answer.unwrap().status().is_server_error());
    // A group within a group, and so on: fields that nobody knows are skipped, however deep they are.
    let channel = Channel::from_shared(scene.grpc.clone()).unwrap().connect().await.unwrap();
    for message in [[0xa3, 0x06].repeat(DEEP), [[0xa3, 0x06].repeat(DEEP), [0xa4, 0x06].repeat(DEEP)].concat()] {
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.unwrap();
        let path = PathAndQuery::from_static("/budget.v1.Transactions/PostTransaction");
        let refused = client.unary(Request::new(Bytes::from(message)), path, Raw).await.unwrap_err();
        assert!(matches!(refused.code(), Code::Internal | Code::InvalidArgument), "{refused:?}");
    }
    lives(&scene).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_default_skips_is_not_run() {
    let scene = Scene::new(Kind::Sqlite, &[]).await;
    let post = |key: &str| {
        format!("createTransaction(input:{{account:\"a\",amount:1,currency:\"EUR\"}},idempotencyKey:\"{key}\")")
    };
    let skip = |key| {
        format!(
            "mutation($s:Boolean=true){{ x:{}@skip(if:$s){{n}} setBudget(input:{{account:\"a\",limit:1,currency:\"EUR\"}},idempotencyKey:\"b\"){{limit}} }}",
            post(key)
        )
    };
    let include = |key| skip(key).replace("=true", "=false").replace("@skip", "@include");
    for (document, variables, runs) in [
        (skip("1"), "{}", false),
        (skip("2"), "{\"s\":true}", false),
        (skip("3"), "{\"s\":false}", true),
        (include("4"), "{}", false),
        (include("5"), "{\"s\":false}", false),
        (include("6"), "{\"s\":true}", true),
        (skip("7").replace("=true", "=false"), "{}", true),
        (include("8").replace("=false", "=true"), "{}", true),
    ] {
        let (status, told) = graphql(&scene, &document, variables).await;
        assert_eq!((status, &told["data"]["setBudget"]["limit"]), (200, &json!(1)), "{told}");
        assert_eq!(told["data"].get("x").is_some(), runs, "{document} {variables}: {told}");
    }
    // What is neither true nor false decides nothing.
    for (document, variables) in [
        (skip("9"), "{\"s\":null}"),
        (skip("10"), "{\"s\":\"true\"}"),
        (skip("11").replace("Boolean=true", "Boolean!"), "{}"),
        (include("12").replace("Boolean=false", "Boolean!"), "{\"s\":1}"),
    ] {
        let (status, told) = graphql(&scene, &document, variables).await;
        assert_eq!((status, &told["data"]), (400, &Value::Null), "{document} {variables}: {told}");
    }
    let (_, told) = graphql(&scene, "{account(account:\"a\"){n}}", "{}").await;
    assert_eq!(told["data"]["account"]["n"], 4, "what was not skipped has run, and nothing else");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_are_bounded_at_every_door_and_answers_by_their_bytes() {
    let scene = Scene::new(Kind::Sqlite, &["gateway.answer_bytes_max=20000"]).await;
    let posting = |memo: String| json!({ "account": "a", "amount": 1, "currency": "EUR", "memo": memo });
    let client = Client::new();
    for (path, body) in [
        ("/api/transactions", posting("x".repeat(1 << 19))),
        ("/api/expenses", posting("x".repeat(4_097))),
        ("/api/orders/o/cancel", json!({ "reason": "é".repeat(2_049) })),
        ("/api/transactions", json!({ "account": "a", "amount": 1, "currency": "EUR", "at": "x".repeat(1 << 19) })),
    ] {
        let answer = client.post(format!("{}{path}", scene.http)).json(&body).send().await.unwrap();
        let status = answer.status().as_u16();
        let told = answer.text().await.unwrap();
        assert!(
            status == 400 && told.contains("at most 4096 are allowed") && told.len() < 2_000,
            "{path}: {told:.500}"
        );
    }
    let line = json!({ "account": "a", "amount": 1, "currency": "EUR", "at": "2026-01-31", "memo": "x".repeat(5_000) });
    scene.cli.file("l.ndjson", format!("{line}\n"));
    let said = scene.cli.json(&["import", "--service", "transactions", "l.ndjson"]).await;
    assert_eq!((said.code, &said.json()["rejected"]), (Some(2), &json!(1)), "{said:?}");
    let rejects = std::fs::read_to_string(scene.cli.place.folder.join("l.ndjson.rejects.ndjson")).unwrap();
    assert!(rejects.contains("the memo has 5000 bytes, at most 4096 are allowed"), "{rejects:.200}");

    for n in 0..20 {
        let answer = client.post(format!("{}/api/transactions", scene.http)).header("idempotency-key", format!("m{n}"));
        let made = answer.json(&posting(format!("{n}{}", "x".repeat(4_000)))).send().await.unwrap();
        assert_eq!(made.status().as_u16(), 201);
    }
    // A page ends before its limit, and leads to the next one.
    let (mut seen, mut after) = (0, None::<String>);
    loop {
        let next = after.iter().map(|after| format!("&after={after}")).collect::<String>();
        let page =
            client.get(format!("{}/api/transactions?account=a&limit=20{next}", scene.http)).send().await.unwrap();
        let page = page.text().await.unwrap();
        assert!(page.len() < 30_000, "{}", page.len());
        let page: Value = serde_json::from_str(&page).unwrap();
        seen += page["items"].as_array().map_or(0, Vec::len);
        let Some(next) = page["next"].as_str() else { break };
        after = Some(next.to_owned());
    }
    assert_eq!(seen, 20);
    // The same under many names counts as often; what comes behind the bound is refused, and the rest is told.
    let names: String = (0..29).map(|n| format!("a{n}:memo ")).collect();
    let (status, told) =
        graphql(&scene, &format!("{{transactions(account:\"a\"){{items{{{names}}}next}}}}"), "{}").await;
    let page = &told["data"]["transactions"];
    assert_eq!((status, page["items"].as_array().map(Vec::len)), (200, Some(1)), "{told:.300}");
    assert!(page["next"].is_string() && told.to_string().len() < 200_000, "{}", told.to_string().len());
    let pages: String = (0..10).map(|n| format!("p{n}:transactions(account:\"a\"){{items{{memo}}}}")).collect();
    let (status, told) = graphql(&scene, &format!("{{{pages}}}"), "{}").await;
    assert!(status == 200 && told.to_string().len() < 40_000, "{}", told.to_string().len());
    let refused = &told["errors"][0];
    assert_eq!(refused["extensions"]["code"], "too_large", "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("gateway.answer_bytes_max"), "{refused}");
    // Reads are dear, however little each of them answers: under one name each of them is made.
    for (reads, status) in [(90, 200), (110, 400)] {
        let (told, answer) = graphql(&scene, &format!("{{{}}}", "account(account:\"a\"){n}".repeat(reads)), "{}").await;
        assert_eq!(told, status, "{reads}: {answer:.300}");
    }
    lives(&scene).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payloads_settings_and_letters_that_are_nested_without_end_are_refused() {
    let deep = [nested(DEEP), "{\"account\":".repeat(DEEP), format!("{{\"memo\":{}}}", nested(DEEP))];
    let schema = "syntax = \"proto3\"; message Node { Node inner = 1; string key = 2; }";
    let schema = Protobuf::from_proto(schema, "Node").unwrap();
    let mut message = Vec::new();
    for _ in 0..5_000 {
        let mut outer = vec![0x0a];
        prost::encoding::encode_varint(message.len() as u64, &mut outer);
        outer.append(&mut message);
        message = outer;
    }
    // Where the codecs are asked: a thread with the stack of a worker.
    let codecs = std::thread::Builder::new().stack_size(2 << 20).spawn({
        let deep = deep.clone();
        move || {
            let provider = Provider::new("", Duration::from_secs(1)).unwrap();
            let handlers = handlers(&App { provider, checkouts: Checkouts::default() });
            for payload in &deep {
                assert!(named_once(payload.as_bytes()).is_err());
                for service in handlers.services() {
                    assert!(handlers.key_of(&service, payload.as_bytes()).is_err(), "{service}");
                }
            }
            for payload in [message, vec![0x0b; DEEP], vec![0x13; DEEP]] {
                assert!(perkey::Codec::<Value>::decode(&schema, &Payload::from(&payload)).is_err());
            }
        }
    });
    codecs.unwrap().join().unwrap();

    let cli = Cli::new().await;
    let fine = r#"{"account":"a","amount":1,"currency":"EUR","at":"2026-01-31"}"#;
    cli.file("lines.ndjson", format!("{fine}\n{}\n", deep.join("\n")));
    let said = cli.json(&["import", "--service", "transactions", "lines.ndjson"]).await;
    assert_eq!((said.code, &said.json()["rejected"]), (Some(2), &json!(3)), "{:.500}", said.err);
    for (name, text) in [
        ("list.toml", format!("x = {}", nested(DEEP))),
        ("table.toml", format!("[gateway]\nlisten = {}1{}", "{a=".repeat(DEEP), "}".repeat(DEEP))),
        ("key.toml", format!("{}a = 1", "a.".repeat(DEEP))),
    ] {
        cli.file(name, text);
        cli.run(&["config", "show", "--config", name]).await.fails(78, &["no TOML at line", name]);
    }
}

/// A connection from this address of this machine, on which that much was sent.
async fn half_sent(from: &str, to: &str, part: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let mut stream = socket.connect(to.parse().unwrap()).await.unwrap();
    stream.write_all(part.as_bytes()).await.unwrap();
    stream
}

/// The bytes that come on the stream until there is a pause; empty once it is shut.
async fn answer(stream: &mut TcpStream) -> String {
    let mut said = vec![0; 64 << 10];
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut said)).await.unwrap().unwrap();
    String::from_utf8_lossy(&said[..read]).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_request_shut_nobody_out() {
    let scene = Scene::new(Kind::Sqlite, &["gateway.connections_max=16", "gateway.read_timeout=60s"]).await;
    let (http, admin) = (scene.http.clone(), scene.admin().await);
    let (front, back) = (http.strip_prefix("http://").unwrap(), admin.strip_prefix("http://").unwrap());
    let request = format!("GET /api/problems HTTP/1.1\r\nhost: {front}\r\n\r\n");
    let mut known = half_sent("127.0.0.3", front, &request).await;
    assert!(answer(&mut known).await.starts_with("HTTP/1.1 200"));
    let mut held = Vec::new();
    for to in [front, back] {
        for _ in 0..100 {
            held.push(half_sent("127.0.0.2", to, "GET /livez HTTP/1.1\r\nhost: local").await);
        }
    }
    let client = Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
    assert_eq!(client.get(format!("{http}/api/problems")).send().await.unwrap().status(), 200);
    lives(&scene).await;
    // Who had one connection still has it, and most of those that say nothing are shut.
    known.write_all(request.as_bytes()).await.unwrap();
    let said = answer(&mut known).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said:.200}");
    let few = async || {
        let open = |stream: &&TcpStream| {
            stream.try_read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        held.iter().filter(open).count() <= 16 + 64
    };
    until("connections that say nothing are shut", Duration::from_secs(20), few).await.unwrap();
    for place in [&admin, &http] {
        let elsewhere = client.get(format!("{place}/metrics")).header("host", "evil.example").send().await.unwrap();
        assert_eq!(elsewhere.status(), 403, "{place}");
    }
    scene.end().await;
}

/// Messages as bytes: what no client of the schema would send.
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}
