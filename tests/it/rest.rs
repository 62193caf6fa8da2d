//! The REST door of the real binary: every route, every kind of problem, tokens, TLS, bounds, documents.
//! In: requests as curl would send them. Out: the behaviour in docs/gateway.md.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use perkey::sleep;
use perkey::unstable::clock::Stopwatch;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cli::Cli;
use crate::contract::{Kind, Scene};

/// Sends JSON, or nothing; returns status and document.
async fn send(scene: &Scene, method: &str, path: &str, body: Value) -> (u16, Value) {
    let response = sent(scene, method, path, body).await;
    let status = response.status().as_u16();
    (status, response.json().await.unwrap_or_default())
}

async fn sent(scene: &Scene, method: &str, path: &str, body: Value) -> Response {
    let method: Method = method.parse().unwrap();
    let request = Client::new().request(method, format!("{}{path}", scene.http));
    let request =
        if path == "/charge" { request.header("idempotency-key", body.to_string().len().to_string()) } else { request };
    let request = if body.is_null() { request } else { request.json(&body) };
    request.send().await.unwrap()
}

async fn made(scene: &Scene, path: &str, body: Value) -> Value {
    let response = sent(scene, "POST", path, body).await;
    assert_eq!(response.status(), 201, "{path}");
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    assert!(response.headers().contains_key("idempotency-key"));
    let made: Value = response.json().await.unwrap();
    let (status, found) = send(scene, "GET", &location, Value::Null).await;
    assert_eq!(status, 200, "{location}: {found}");
    assert_eq!((&found["account"], &found["amount"]), (&made["account"], &made["amount"]), "{location}");
    made
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_does_what_a_newcomer_expects() {
    let scene = Scene::new(Kind::Sqlite, &[]).await;
    let what = json!({ "account": "a-1", "amount": 1_250, "currency": "USD", "memo": "lunch" });
    let posted = made(&scene, "/api/transactions", what.clone()).await;
    assert_eq!((&posted["balance"], &posted["n"]), (&1_250.into(), &1.into()), "{posted}");
    let account = send(&scene, "GET", "/api/accounts/a-1", Value::Null).await;
    assert_eq!(account, (200, json!({ "account": "a-1", "balance": 1_250, "currency": "USD", "n": 1 })));

    let order = made(&scene, "/api/orders", what.clone()).await;
    assert_eq!(order["status"], "placed");
    let path = format!("/api/orders/{}", order["id"].as_str().unwrap());
    let (status, done) = send(&scene, "POST", &format!("{path}/complete"), Value::Null).await;
    assert_eq!((status, &done["status"]), (200, &"completed".into()));
    let (status, late) = send(&scene, "POST", &format!("{path}/cancel"), json!({ "reason": "no" })).await;
    assert_eq!((status, &late["code"]), (409, &"conflict".into()));
    let other =
        made(&scene, "/api/orders", json!({ "id": "o/1", "account": "a-1", "amount": 1, "currency": "USD" })).await;
    assert_eq!(other["id"], "o/1");
    let (status, gone) =
        send(&scene, "PATCH", "/api/orders/o%2F1", json!({ "status": "cancelled", "reason": "no" })).await;
    assert_eq!((status, &gone["status"], &gone["reason"]), (200, &"cancelled".into(), &"no".into()));
    let (status, again) =
        send(&scene, "POST", "/api/orders", json!({ "id": "o/1", "account": "a-1", "amount": 2, "currency": "USD" }))
            .await;
    assert_eq!((status, &again["code"]), (409, &"already_exists".into()));
    let (status, none) = send(&scene, "POST", "/api/orders/none/cancel", Value::Null).await;
    assert_eq!((status, &none["code"]), (404, &"not_found".into()));

    let expense = made(&scene, "/api/expenses", what.clone()).await;
    assert_eq!((&expense["category"], &expense["spent"]), (&"general".into(), &1_250.into()));
    let budget = json!({ "account": "a-1", "category": "food", "limit": 500, "currency": "USD" });
    assert_eq!(send(&scene, "POST", "/api/budgets", budget).await.0, 200);

    let paid =
        made(&scene, "/charge", json!({ "order": "paid", "account": "a-1", "amount": 5, "currency": "USD" })).await;
    assert_eq!((&paid["status"], &paid["order_id"]), (&"charged".into(), &"paid".into()));
    let (status, back) = send(&scene, "POST", "/charge/paid/refund", Value::Null).await;
    assert_eq!((status, &back["status"]), (200, &"refunded".into()));

    let checkout = made(&scene, "/api/checkouts", what).await;
    let path = format!("/api/checkouts/{}", checkout["id"].as_str().unwrap());
    for _ in 0..200 {
        if send(&scene, "GET", &path, Value::Null).await.1["status"] == "completed" {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(send(&scene, "GET", &path, Value::Null).await.1["status"], "completed");
    assert_eq!(send(&scene, "GET", "/api/accounts/a-1", Value::Null).await.1["balance"], 0, "it was paid for");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_lead_through_all_of_an_account_and_to_nothing_else() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let scene = Scene::new(kind, &[]).await;
        let mut ids = BTreeSet::new();
        for n in 1..=7 {
            let body = json!({ "account": "a b", "amount": n, "currency": "EUR" });
            ids.insert(made(&scene, "/api/transactions", body).await["id"].as_str().unwrap().to_owned());
            let account = if n > 5 { "b" } else { "a b" };
            let body = json!({ "id": format!("o-{n}"), "account": account, "amount": n, "currency": "EUR" });
            made(&scene, "/api/orders", body).await;
        }
        let (mut seen, mut after) = (Vec::new(), String::new());
        for size in [3, 3, 1] {
            let path = format!("/api/transactions?account=a%20b&limit=3{after}");
            let (status, page) = send(&scene, "GET", &path, Value::Null).await;
            let items = page["items"].as_array().unwrap();
            assert_eq!((status, items.len()), (200, size), "{page}");
            seen.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
            after = page["next"].as_str().map(|next| format!("&after={next}")).unwrap_or_default();
        }
        assert_eq!((after.as_str(), seen.len(), seen.into_iter().collect::<BTreeSet<_>>()), ("", 7, ids));
        let (_, orders) = send(&scene, "GET", "/api/orders?account=b", Value::Null).await;
        assert_eq!((orders["items"].as_array().unwrap().len(), &orders["next"]), (2, &Value::Null));
        for path in [
            "/api/orders",
            "/api/orders?account=b&limit=0",
            "/api/orders?account=b&limit=x",
            "/api/orders?account=b&x=1",
        ] {
            assert_eq!(send(&scene, "GET", path, Value::Null).await.1["code"], "malformed", "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_problem_says_what_was_wrong() {
    let scene = Scene::new(Kind::Sqlite, &["gateway.body_bytes_max=1000"]).await;
    let url = |path: &str| format!("{}{path}", scene.http);
    let client = Client::new();
    let (status, wrong) =
        send(&scene, "POST", "/api/transactions", json!({ "account": "", "amount": 1.5, "x": 1 })).await;
    let places: Vec<_> = wrong["errors"].as_array().unwrap().iter().map(|error| error["pointer"].clone()).collect();
    assert_eq!(
        (status, places),
        (400, ["/account", "/amount", "/currency", "/x"].map(Value::from).to_vec()),
        "{wrong}"
    );
    assert_eq!(wrong["instance"], "/api/transactions");

    let form = client.post(url("/api/orders")).form(&[("account", "a")]).send().await.unwrap();
    assert_eq!(form.status(), 415);
    let large = client.post(url("/api/orders")).json(&"x".repeat(2_000)).send().await.unwrap();
    assert_eq!(large.status(), 413);
    // The same without a length: it is counted as it comes.
    let mut stream = TcpStream::connect(scene.http.strip_prefix("http://").unwrap()).await.unwrap();
    let head = "POST /api/orders HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\n\r\n";
    let chunks = format!("64\r\n{}\r\n", " ".repeat(100)).repeat(20);
    stream.write_all(format!("{head}{chunks}0\r\n\r\n").as_bytes()).await.unwrap();
    let mut said = [0; 12];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"HTTP/1.1 413");
    assert_eq!(send(&scene, "GET", "/nowhere", Value::Null).await.1["code"], "not_found");
    let wrong = sent(&scene, "DELETE", "/api/orders", Value::Null).await;
    assert_eq!(wrong.status(), 405);
    assert!(wrong.headers().contains_key("allow"));
    assert_eq!(wrong.json::<Value>().await.unwrap()["code"], "method_not_allowed");
    let nested = format!("{{\"account\":{}1{}}}", "[".repeat(70), "]".repeat(70));
    let request = client.post(url("/api/orders")).header("content-type", "application/json");
    assert_eq!(request.body(nested).send().await.unwrap().status(), 400);

    // Whoever leads a browser here by a name of their own, or from a page of their own, is told to stay away.
    let named = client.get(url("/api/accounts/a")).header("host", "evil.example").send().await.unwrap();
    assert_eq!(named.status(), 403);
    let paged = client.post(url("/api/orders")).header("origin", "https://evil.example").json(&json!({})).send().await;
    assert_eq!(paged.unwrap().status(), 403);

    let known: Value = client.get(url("/api/problems")).send().await.unwrap().json().await.unwrap();
    for problem in known.as_array().unwrap() {
        let path = format!("/api/problems/{}", problem["code"].as_str().unwrap());
        assert_eq!(send(&scene, "GET", &path, Value::Null).await, (200, problem.clone()));
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_description_fits_the_routes() {
    let scene = Scene::new(Kind::Sqlite, &[]).await;
    let (_, document) = send(&scene, "GET", "/api/openapi.json", Value::Null).await;
    let client = Client::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let place = format!("{}{}", scene.http, path.replace("{id}", "x").replace("{code}", "internal"));
        let described: BTreeSet<_> = methods.as_object().unwrap().keys().map(|name| name.to_uppercase()).collect();
        // What is described is there, and nothing else is.
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let answer = client.request(method.parse().unwrap(), &place).send().await.unwrap();
            let there = answer.status() != 405;
            assert_eq!(there, described.contains(method), "{method} {path}: {}", answer.status());
            if there && method != "GET" {
                assert!([200, 400, 404].contains(&answer.status().as_u16()), "{method} {path}: {}", answer.status());
            }
        }
    }
    let order = &document["paths"]["/api/orders"]["post"];
    assert_eq!(order["operationId"], "orders.place");
    assert!(order["requestBody"]["content"]["application/json"]["schema"]["properties"]["amount"].is_object());
    assert!(document["components"]["schemas"]["order"]["properties"]["status"].is_object());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_are_counted_by_route_and_tenants_have_a_rate() {
    let scene = Scene::new(Kind::Sqlite, &["gateway.rate=2", "admin.listen=127.0.0.1:0"]).await;
    let mut limited = 0;
    for _ in 0..6 {
        let answer = sent(&scene, "GET", "/api/accounts/none", Value::Null).await;
        if answer.status() == 429 {
            limited += 1;
            assert_eq!(answer.headers()["retry-after"], "1");
        }
    }
    assert!(limited >= 2, "{limited}");
    let log = std::fs::read_to_string(scene.cli.place.folder.join(scene.log())).unwrap();
    let metrics = log.split_once("metrics=").unwrap().1.split_whitespace().next().unwrap().trim_matches('"');
    let text = reqwest::get(metrics).await.unwrap().text().await.unwrap();
    let line = format!("http_request_outcome_total{{route=\"/api/accounts/{{id}}\",outcome=\"limited\"}} {limited}");
    assert!(text.contains(&line), "{text}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_many_clients_are_bounded() {
    let scene = Scene::new(Kind::Sqlite, &["gateway.read_timeout=1s", "gateway.connections_max=4"]).await;
    let address = scene.http.strip_prefix("http://").unwrap().to_owned();
    // Nothing; half of HTTP/2's first words; half a head; half a body.
    for part in [
        "",
        "PRI * HT",
        "POST /api/orders HTTP/1.1\r\nhost: local",
        "POST /api/orders HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{",
    ] {
        let watch = Stopwatch::start();
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(part.as_bytes()).await.unwrap();
        let mut said = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut said)).await;
        assert!(ended.is_ok(), "{part:?} holds a connection");
        assert!(watch.elapsed() > Duration::from_millis(700), "{part:?}");
        let said = String::from_utf8_lossy(&said);
        assert!(said.is_empty() || said.contains(" 408 "), "{part:?}: {said}");
    }
    // More connections than there may be: those behind wait for room, and get it.
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.push(TcpStream::connect(&address).await.unwrap());
    }
    let answer =
        tokio::time::timeout(Duration::from_secs(20), reqwest::get(format!("{}/api/problems", scene.http))).await;
    assert_eq!(answer.unwrap().unwrap().status(), 200);
    drop(idle);
    let many = (0..200).fold(Client::new().get(format!("{}/api/problems", scene.http)), |request, n| {
        request.header(format!("x-{n}"), "1")
    });
    assert_eq!(many.send().await.unwrap().status(), 431);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_spoken_where_there_is_a_certificate() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let sets = ["gateway.tls_cert=cert.pem", "gateway.tls_key=key.pem"];
    let prepare = |cli: &Cli| {
        cli.file("cert.pem", &cert);
        cli.file("key.pem", &key);
    };
    let scene = Scene::with(Kind::Sqlite, &sets, prepare).await;
    assert!(scene.http.starts_with("https://127.0.0.1:"), "{}", scene.http);
    let place = scene.http.replace("127.0.0.1", "localhost");
    let root = reqwest::Certificate::from_pem(cert.as_bytes()).unwrap();
    let address = scene.http.strip_prefix("https://").unwrap().parse().unwrap();
    let client = Client::builder().add_root_certificate(root).resolve("localhost", address).build().unwrap();
    let answer = client.get(format!("{place}/api/problems")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(Client::new().get(format!("{place}/api/problems")).send().await.is_err(), "nobody else vouches for it");
    assert!(reqwest::get(scene.http.replace("https", "http")).await.is_err(), "plain text is not TLS");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_encoded_and_text_that_is_not_utf_8_are_named() {
    let scene = Scene::new(Kind::Sqlite, &[]).await;
    let posting = br#"{"account":"a","amount":1,"currency":"USD"}"#;
    for path in ["/api/transactions", "/graphql"] {
        let post = |kind: &str| {
            Client::new().post(format!("{}{path}", scene.http)).header("content-type", kind).body(posting.to_vec())
        };
        let encoded = post("application/json").header("content-encoding", "gzip").send().await.unwrap();
        assert_eq!(
            (encoded.status().as_u16(), encoded.headers()["accept-encoding"].as_bytes()),
            (415, &b"identity"[..])
        );
        assert!(encoded.text().await.unwrap().contains("unsupported_content_encoding"), "{path}");
        let other = post("application/json; charset=utf-16").send().await.unwrap();
        assert_eq!(other.status(), 415, "{path}");
        assert!(!other.headers().contains_key("accept-encoding"), "{path}: the coding was not it");
        assert!(other.text().await.unwrap().contains("charset"), "{path}");
    }
    let marked = [b"\xef\xbb\xbf", &posting[..]].concat();
    let post =
        Client::new().post(format!("{}/api/transactions", scene.http)).header("content-type", "application/json");
    assert_eq!(post.body(marked).send().await.unwrap().status(), 201);
    let upper = scene.http.replace("127.0.0.1", "LOCALHOST").replace("http://", "");
    let named = Client::new().get(format!("{}/api/accounts/a", scene.http)).header("host", upper).send().await.unwrap();
    assert_eq!(named.status(), 200);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_payment_provider_whatever_needs_one_is_refused_at_once() {
    let charge = json!({ "order": "o-1", "account": "a-1", "amount": 500, "currency": "USD" });
    let scene = Scene::new(Kind::Sqlite, &["app.provider_url="]).await;
    for (path, body) in [
        ("/charge", charge),
        ("/charge/o-1/refund", Value::Null),
        ("/api/checkouts", json!({ "account": "a-1", "amount": 500, "currency": "USD" })),
    ] {
        let (status, problem) = send(&scene, "POST", path, body).await;
        assert_eq!((status, &problem["code"]), (501, &"not_configured".into()), "{path}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("set app.provider_url"), "{problem}");
    }
    let (status, _) =
        send(&scene, "POST", "/api/transactions", json!({ "account": "a", "amount": 1, "currency": "USD" })).await;
    assert_eq!(status, 201, "nothing else needs it");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_opened_is_told_before_anything_runs() {
    let cli = Cli::new().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = format!("gateway.listen={}", taken.local_addr().unwrap());
    let up = ["up", "--set", "admin.listen=127.0.0.1:0", "--set"];
    cli.run(&[&up[..], &[&listen]].concat()).await.fails(1, &["cannot listen", "gateway.listen"]);
    cli.run(&[&up[..], &["gateway.listen=0.0.0.0:0"]].concat()).await.fails(78, &["gateway.tokens", "token:new"]);
    cli.run(&[&up[..], &["gateway.tokens=missing"]].concat()).await.fails(1, &["cannot read missing"]);
    cli.file("tokens", "nonsense\n");
    cli.run(&[&up[..], &["gateway.tokens=tokens"]].concat()).await.fails(1, &["tokens:1"]);
    cli.run(&[&up[..], &["gateway.tls_cert=x"]].concat()).await.fails(78, &["gateway.tls_key"]);
    cli.run(&["gateway"]).await.fails(78, &["budget-manager up"]);
    cli.run(&["token:new", "--tenant", "a", "--principal", "b", "--role", "read"]).await.fails(64, &["gateway.tokens"]);
    let wrong = ["token:new", "--set", "gateway.tokens=t", "--tenant", "A", "--principal", "b", "--role", "read"];
    cli.run(&wrong).await.fails(64, &["is not a name"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_an_engine_answers_from_the_workers() {
    let scene = Scene::new(Kind::Postgres, &["log.poll=10ms"]).await;
    let mut alone = scene.cli.place.start("alone.log", &["gateway", "--set", "admin.listen=127.0.0.1:0"]).unwrap();
    let file = scene.cli.place.folder.join("alone.log");
    let base = Arc::new(std::sync::Mutex::new(String::new()));
    let found = async || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let line = text.lines().find(|line| line.contains("the gateway listens "));
        let address =
            line.and_then(|line| line.split_once("address=")).and_then(|(_, rest)| rest.split_whitespace().next());
        address.is_some_and(|address| {
            address.trim_matches('"').clone_into(&mut base.lock().unwrap());
            true
        })
    };
    perkey_chaos::process::until("the gateway does not listen", Duration::from_secs(60), found).await.unwrap();
    let base = base.lock().unwrap().clone();
    let client = Client::new();
    let body = json!({ "account": "a", "amount": 5, "currency": "EUR" });
    let post = |base: &str| client.post(format!("{base}/api/transactions")).header("idempotency-key", "k").json(&body);
    let first = post(&base).send().await.unwrap();
    assert_eq!(first.status(), 201);
    let bytes = first.bytes().await.unwrap();
    // One key is one key, whichever gateway is asked.
    let again = post(&scene.http).send().await.unwrap();
    assert_eq!((again.status().as_u16(), &again.headers()["idempotent-replayed"]), (201, &"true".parse().unwrap()));
    assert_eq!(again.bytes().await.unwrap(), bytes);
    alone.terminate().await.unwrap();
    assert_eq!(alone.ends(Duration::from_secs(30)).await.unwrap().code(), Some(0));
    scene.end().await;
}
