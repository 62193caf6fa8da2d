//! Tests of `/metrics` of the real binary: its series, and its two formats.
//! In: requests at its doors and at its admin listener. Out: the behaviour in docs/metrics.md.

use std::collections::BTreeSet;

use reqwest::Client;
use serde_json::{Value, json};

use crate::contract::{Kind, Scene};

/// The series of a metric in the text.
fn series(text: &str, name: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
}

/// The number behind a series.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{series} is not in {text}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_series_of_every_route_are_there_before_its_first_request() {
    let scene = Scene::new(Kind::Sqlite, &[]).await;
    let (address, client) = (format!("{}/metrics", scene.admin().await), Client::new());
    let told = async || client.get(&address).send().await.unwrap().text().await.unwrap();
    let before = told().await;
    let name = "http_request_outcome_total";
    assert!(before.lines().filter(|line| line.starts_with(name)).all(|line| line.ends_with(" 0")), "{before}");
    let document: Value =
        client.get(format!("{}/api/openapi.json", scene.http)).send().await.unwrap().json().await.unwrap();
    let documented = document["paths"].as_object().unwrap().keys().cloned();
    let others = ["/api/problems", "/api/problems/none", "/graphql", "/graphql/schema", "/nowhere"];
    for path in documented.chain(others.map(str::to_owned)) {
        for method in [reqwest::Method::GET, reqwest::Method::POST, reqwest::Method::PATCH] {
            client.request(method, format!("{}{path}", scene.http)).json(&json!({})).send().await.unwrap();
        }
    }
    let after = told().await;
    assert_eq!(series(&before, name), series(&after, name), "a series came with its first request");
    assert!(value(&after, &format!("{name}{{route=\"/graphql/schema\",outcome=\"done\"}}")) >= 1.0);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_its_operations_and_its_routes_are_shown_in_both_formats() {
    let scene = Scene::new(Kind::Sqlite, &[]).await;
    let (address, client) = (format!("{}/metrics", scene.admin().await), Client::new());
    let told = async |accept: &str| {
        let answer = client.get(&address).header("accept", accept).send().await.unwrap();
        (answer.headers()["content-type"].to_str().unwrap().to_owned(), answer.text().await.unwrap())
    };
    let key = |outcome| format!("idempotency_key_total{{operation=\"transactions.post\",outcome=\"{outcome}\"}}");
    let before = told("*/*").await.1;
    for outcome in ["new", "replay", "in_flight", "mismatch"] {
        assert_eq!(value(&before, &key(outcome)), 0.0, "{outcome}");
    }
    for (amount, status) in [(1, 201), (1, 201), (2, 422)] {
        let what = json!({ "account": "a", "amount": amount, "currency": "EUR" });
        let request = client.post(format!("{}/api/transactions", scene.http)).header("idempotency-key", "\"k\"");
        assert_eq!(request.json(&what).send().await.unwrap().status(), status, "{amount}");
    }
    let ((open_type, open), (classic_type, classic)) = (told("*/*").await, told("text/plain").await);
    assert!(open_type.starts_with("application/openmetrics-text") && open.ends_with("# EOF\n"), "{open_type}");
    assert!(classic_type.starts_with("text/plain; version=0.0.4") && !classic.contains("# EOF"), "{classic_type}");
    for text in [open, classic] {
        for (outcome, count) in [("new", 1.0), ("replay", 1.0), ("mismatch", 1.0)] {
            assert_eq!(value(&text, &key(outcome)), count, "{outcome}");
        }
        assert_eq!(value(&text, "http_request_seconds_count{route=\"/api/transactions\"}"), 3.0);
        assert!(value(&text, "idempotency_cache_misses_total") >= 1.0);
        assert_eq!(value(&text, "perkey_shards_without_owner"), 0.0);
        let build = series(&text, "perkey_build_info");
        assert!(build.len() == 1 && build.iter().all(|build| value(&text, build) == 1.0), "{build:?}");
        for name in ["resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds", "cpu_seconds_total"] {
            assert!(value(&text, &format!("process_{name}")) > 0.0, "{name}");
        }
    }
    scene.end().await;
}
