//! What `/metrics` of the real binary shows, and in which form.
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
