//! The client against a server that fails in every way.
//! In: a list of the server's acts, attempt by attempt. Out: one key, one final answer, pauses as asked.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response};
use futures_util::future::join_all;
use perkey::sleep;
use perkey::unstable::clock::Stopwatch;
use perkey_client::{CallError, Client, Last, Operation, Options};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::cli::Cli;

/// The server's behaviour at one attempt.
#[derive(Clone)]
enum Does {
    Answers(u16, &'static [(&'static str, &'static str)], Value),
    Sleeps,
}

/// The parts of an attempt, as the server got them.
#[derive(Clone, Debug, Default)]
struct Attempt {
    method: String,
    path: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Attempt {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

type Seen = Arc<Mutex<Vec<Attempt>>>;

/// A server that does one thing after the other, the last one for ever.
async fn server(plan: &[Does]) -> (String, Seen) {
    let seen = Seen::default();
    let state = (Arc::new(plan.to_vec()), Arc::clone(&seen));
    let router = Router::new().fallback(handle).with_state(state);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, seen)
}

async fn handle(State((plan, seen)): State<(Arc<Vec<Does>>, Seen)>, request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec();
    let attempt = Attempt { method: head.method.to_string(), path: head.uri.to_string(), headers: head.headers, body };
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push(attempt);
        seen.len()
    };
    match plan[number.min(plan.len()) - 1].clone() {
        Does::Sleeps => {
            sleep(Duration::from_secs(60)).await;
            Response::new(Body::empty())
        }
        Does::Answers(status, headers, body) => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(*name, *value);
            }
            response.body(Body::from(body.to_string())).unwrap()
        }
    }
}

fn quick() -> Options {
    Options { pause: Duration::from_millis(5), deadline: Duration::from_secs(20), ..Options::default() }
}

fn done() -> Does {
    Does::Answers(201, &[("location", "/api/orders/1")], json!({ "id": "1" }))
}

fn problem(status: u16, headers: &'static [(&'static str, &'static str)], code: &str) -> Does {
    Does::Answers(status, headers, json!({ "code": code, "detail": "as told" }))
}

fn order() -> Operation {
    Operation::post("/api/orders", &json!({ "account": "a-1" })).unwrap()
}

#[tokio::test]
async fn an_operation_keeps_its_key_through_all_attempts_until_it_is_done() {
    let plan = [problem(503, &[], "unavailable"), problem(409, &[("retry-after", "0")], "in_flight"), done()];
    let (url, seen) = server(&plan).await;
    let client = Client::new(&url, Options { token: Some("secret".to_owned()), ..quick() }).unwrap();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let answer = client.call(order().traceparent(trace)).await.unwrap();
    assert_eq!((answer.status, answer.replayed, answer.attempts), (201, false, 3));
    assert_eq!(answer.location.as_deref(), Some("/api/orders/1"));
    assert_eq!(answer.json::<Value>().unwrap(), json!({ "id": "1" }));
    let seen = seen.lock().unwrap();
    let key = format!("\"{}\"", answer.key.unwrap());
    for attempt in &*seen {
        assert_eq!((attempt.method.as_str(), attempt.path.as_str()), ("POST", "/api/orders"));
        assert_eq!(attempt.header("idempotency-key"), Some(key.as_str()));
        assert_eq!(attempt.header("authorization"), Some("Bearer secret"));
        assert_eq!(attempt.header("traceparent"), Some(trace));
        assert_eq!(attempt.header("content-type"), Some("application/json"));
        assert_eq!(attempt.body, br#"{"account":"a-1"}"#);
    }
    assert_eq!(seen.len(), 3);
    assert!(!format!("{client:?}").contains("secret"));
}

#[tokio::test]
async fn what_is_stored_is_final() {
    let replayed: &[(&str, &str)] = &[("idempotent-replayed", "true")];
    for (plan, status) in [
        (Does::Answers(201, replayed, json!({})), 201),
        (problem(500, replayed, "failed"), 500),
        (problem(500, &[], "failed"), 500),
        (problem(422, &[], "key_reused"), 422),
        (problem(409, &[], "already_exists"), 409),
        (problem(400, &[], "malformed"), 400),
    ] {
        let is_replayed = matches!(&plan, Does::Answers(_, headers, _) if !headers.is_empty());
        let (url, seen) = server(&[plan]).await;
        let answer = Client::new(&url, quick()).unwrap().call(order()).await.unwrap();
        assert_eq!((answer.status, answer.replayed, answer.attempts), (status, is_replayed, 1));
        assert_eq!(seen.lock().unwrap().len(), 1);
        if status >= 400 {
            assert_eq!(answer.problem().unwrap().detail.as_deref(), Some("as told"));
        }
    }
}

#[tokio::test]
async fn a_server_is_left_alone_for_as_long_as_it_asks_up_to_a_bound() {
    let (url, _) = server(&[problem(429, &[("retry-after", "1")], "rate_limited"), done()]).await;
    let time = Stopwatch::start();
    Client::new(&url, quick()).unwrap().call(order()).await.unwrap();
    assert!(time.elapsed() >= Duration::from_secs(1), "{:?}", time.elapsed());
    let far = problem(503, &[("retry-after", "Fri, 31 Dec 2199 23:59:59 GMT")], "overloaded");
    let (url, _) = server(&[far, done()]).await;
    let options = Options { retry_after_max: Duration::from_millis(10), ..quick() };
    assert_eq!(Client::new(&url, options).unwrap().call(order()).await.unwrap().attempts, 2);
}

#[tokio::test]
async fn time_is_up_at_the_deadline_and_the_error_has_the_key() {
    let (url, _) = server(&[Does::Sleeps]).await;
    let options = Options { deadline: Duration::from_millis(300), ..quick() };
    let time = Stopwatch::start();
    let ended = Client::new(&url, options).unwrap().call(order().key("mine").unwrap()).await;
    assert!(time.elapsed() < Duration::from_secs(5), "{:?}", time.elapsed());
    let Err(CallError::Deadline { key, last: Last::Lost(_), .. }) = &ended else { panic!("{ended:?}") };
    assert_eq!(key.as_deref(), Some("mine"));
    assert!(ended.unwrap_err().to_string().contains("mine"));
    // A pause that would end behind the deadline is not waited for.
    let (url, _) = server(&[problem(503, &[("retry-after", "30")], "overloaded")]).await;
    let options = Options { deadline: Duration::from_secs(10), ..quick() };
    let time = Stopwatch::start();
    let ended = Client::new(&url, options).unwrap().call(order()).await;
    assert!(matches!(&ended, Err(CallError::Deadline { attempts: 1, last: Last::Answer(_), .. })), "{ended:?}");
    assert!(time.elapsed() < Duration::from_secs(5), "{:?}", time.elapsed());
}

#[tokio::test]
async fn retries_have_a_budget() {
    let (url, seen) = server(&[problem(503, &[], "overloaded")]).await;
    let client = Client::new(&url, Options { retries_per_second: 0.5, ..quick() }).unwrap();
    let ended = join_all((0..50).map(|_| client.call(order()))).await;
    assert!(ended.iter().all(|ended| matches!(ended, Err(CallError::Budget { .. }))), "{ended:?}");
    let attempts = seen.lock().unwrap().len();
    assert!((50..70).contains(&attempts), "{attempts} attempts of 50 calls");
}

/// A server that loses answers: it reads the first request whole, then closes, or stops half-way, and is well after
/// that.
async fn losing(half: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let requests = Arc::clone(&seen);
    #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
    tokio::spawn(async move {
        for says in [half, "HTTP/1.1 201 Created\r\ncontent-length: 2\r\nidempotent-replayed: true\r\n\r\n{}"] {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = String::new();
            while !request.ends_with('}') {
                let mut part = [0; 1_024];
                let count = connection.read(&mut part).await.unwrap();
                request.push_str(std::str::from_utf8(&part[..count]).unwrap());
            }
            requests.lock().unwrap().push(request);
            connection.write_all(says.as_bytes()).await.unwrap();
            connection.shutdown().await.unwrap();
        }
    });
    (url, seen)
}

#[tokio::test]
async fn an_answer_that_is_lost_is_asked_for_again_under_the_same_key() {
    for half in ["", "HTTP/1.1 201 Created\r\ncontent-length: 100\r\n\r\n{\"id\":"] {
        let (url, seen) = losing(half).await;
        let answer = Client::new(&url, quick()).unwrap().call(order()).await.unwrap();
        assert!(answer.replayed && answer.attempts == 2, "{answer:?}");
        let header = format!("idempotency-key: \"{}\"", answer.key.unwrap());
        let seen = seen.lock().unwrap();
        assert!(
            seen.len() == 2 && seen.iter().all(|request| request.to_ascii_lowercase().contains(&header)),
            "{seen:?}"
        );
    }
}

#[tokio::test]
async fn a_server_that_comes_up_late_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::new(&format!("http://{address}"), quick()).unwrap();
    let late = async {
        sleep(Duration::from_millis(200)).await;
        let listener = TcpListener::bind(address).await.unwrap();
        let router = Router::new().fallback(async || "{}");
        #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
        tokio::spawn(async move { axum::serve(listener, router).await });
    };
    let (answer, ()) = tokio::join!(client.call(order()), late);
    assert_eq!(answer.unwrap().status, 200);
}

#[tokio::test]
async fn a_large_answer_and_a_wrong_address_are_refused() {
    let (url, _) = server(&[Does::Answers(200, &[], json!("x".repeat(100)))]).await;
    let client = Client::new(&url, Options { body_bytes_max: 64, ..quick() }).unwrap();
    let ended = client.call(Operation::get("/api").unwrap()).await;
    assert_eq!(ended, Err(CallError::TooLarge { status: 200, max: 64 }));
    for url in ["127.0.0.1:8080", "ftp://h", "http://", "http://h?x=1"] {
        assert!(matches!(Client::new(url, quick()), Err(CallError::Invalid(_))), "{url}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_shows_the_answer_and_ends_as_it_did() {
    let cli = Cli::new().await;
    let replayed: &[(&str, &str)] = &[("idempotent-replayed", "true")];
    let (url, seen) =
        server(&[problem(503, &[], "overloaded"), Does::Answers(201, replayed, json!({ "id": "1" }))]).await;
    let call = ["call", "POST", "/api/orders", r#"{"account":"a-1"}"#, "--key", "mine", "--url", &url];
    let said = cli.json(&call).await.ends(0);
    assert_eq!(said["status"], 201);
    assert_eq!((&said["replayed"], &said["key"], &said["attempts"]), (&json!(true), &json!("mine"), &json!(2)));
    assert_eq!(said["body"], json!({ "id": "1" }));
    assert_eq!(seen.lock().unwrap()[0].header("idempotency-key"), Some("\"mine\""));
    let said = cli.run(&call).await;
    assert!(said.code == Some(0) && said.out.contains("replayed"), "{said:?}");
    for (does, code) in
        [(problem(422, &[], "rejected"), 2), (problem(404, &[], "not_found"), 3), (problem(500, &[], "failed"), 1)]
    {
        let (url, _) = server(&[does]).await;
        let said = cli.json(&["call", "GET", "/api/orders/1", "--url", &url]).await;
        assert_eq!(said.code, Some(code), "{said:?}");
        assert_eq!(said.json()["body"]["detail"], "as told");
    }
    let call = |rest: &[&'static str]| [&["call", "POST", "/api/orders"], rest].concat();
    cli.run(&call(&["{", "--url", "http://127.0.0.1:1"])).await.fails(64, &["the body is not JSON"]);
    let away = call(&["{}", "--url", "http://127.0.0.1:1", "--deadline", "200ms"]);
    cli.run(&away).await.fails(4, &["no connection", "budget-manager up"]);
}
