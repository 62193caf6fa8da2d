//! Rows about whose a key is: tenants, principals, roles, and what is stored of a caller.

use std::time::Duration;

use perkey::sleep;
use perkey_chaos::process::until;
use serde_json::json;

use super::rows::post;
use super::{Kind, Scene, Sent, door};

/// A bit more than it takes until a change of the file of tokens is noticed.
const NOTICED: Duration = Duration::from_millis(1_500);

async fn token(scene: &Scene, tenant: &str, principal: &str, roles: &[&str]) -> String {
    let mut args = vec!["token:new", "--set", "gateway.tokens=tokens", "--tenant", tenant, "--principal", principal];
    args.extend(roles.iter().flat_map(|role| ["--role", role]));
    scene.cli.json(&args).await.ends(0)["token"].as_str().unwrap().to_owned()
}

/// I-15, I-16, I-17, I-25.
pub(super) async fn hold(protocol: &str, kind: Kind) {
    let sets = ["gateway.tokens=tokens", "gateway.lenient_keys=false", "gateway.keys_max=6"];
    let scene = Scene::with(kind, &sets, |cli| cli.file("tokens", "# tenant default and others\n")).await;
    let both = ["read", "write"];
    let ann = token(&scene, "acme", "ann", &both).await;
    let bob = token(&scene, "acme", "bob", &both).await;
    let eve = token(&scene, "other", "eve", &both).await;
    let reader = token(&scene, "acme", "reader", &["read"]).await;
    sleep(NOTICED).await;
    let door = door(protocol, &scene);

    // I-17: what was not begun is not stored.
    door.send(post("k", "a", 1)).await.is("unauthenticated");
    door.send(post("k", "a", 1).by("bm_0")).await.is("unauthenticated");
    door.send(post("k", "a", 1).by(&reader)).await.is("forbidden");
    let plain = Sent { keys: super::Keys::raw("k"), ..post("", "a", 1) };
    door.send(plain.by(&ann)).await.is("key_malformed");
    assert_eq!(scene.count("SELECT count(*) FROM calls").await, 0);

    // I-15: the same key of another tenant or principal is another key; so is the same account of another tenant.
    let first = door.send(post("k", "a", 1).by(&ann)).await;
    assert_eq!(first.is_new()["n"], 1);
    assert_eq!(door.send(post("k", "a", 1).by(&bob)).await.is_new()["n"], 2);
    assert_eq!(door.send(post("k", "a", 1).by(&eve)).await.is_new()["n"], 1);
    door.send(post("k", "a", 1).by(&ann)).await.replays(&first);
    let id = first.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(door.one("transaction", &id, Some(&reader)).await.is_new()["account"], "a");
    door.one("transaction", &id, Some(&eve)).await.is("not_found");
    assert_eq!(door.one("account", "a", Some(&ann)).await.json()["n"], 2);
    assert_eq!(door.one("account", "a", Some(&eve)).await.json()["n"], 1);

    // Messages that came another way have the ids that they came with, and accounts have ids of their own.
    let posted = |account: &str, id: &str| {
        json!({ "id": id, "account": account, "amount": 1, "currency": "EUR", "at": "2026-01-31" }).to_string()
    };
    let lines = [posted("@acme/x", "7"), posted("@acme/y", "8"), posted("@acme/z", "8"), posted("@other/y", "8")];
    scene.cli.file("more.ndjson", lines.join("\n") + "\n");
    scene.cli.json(&["import", "--service", "transactions", "more.ndjson"]).await.ends(0);
    for (account, by) in [("x", &ann), ("y", &ann), ("z", &ann), ("y", &eve)] {
        let there = async || door.one("account", account, Some(by)).await.code.is_empty();
        until("all are posted", Duration::from_secs(60), there).await.unwrap();
    }
    for (id, by, account) in [("7", &ann, "x"), ("8", &eve, "y")] {
        assert_eq!(door.one("transaction", id, Some(by)).await.is_new()["account"], account);
    }
    door.one("transaction", "7", Some(&eve)).await.is("not_found");
    door.one("transaction", "8", Some(&ann)).await.is("ambiguous");

    // A tenant's keys have a bound of their own; what is beyond it is not stored.
    for n in 0..4 {
        door.send(post(&format!("more-{n}"), "a", 1).by(&ann)).await.is_new();
    }
    let many = door.send(post("too-many", "a", 1).by(&ann)).await;
    many.is("too_many_keys");
    assert!(many.retry_after.is_some());
    door.send(post("k", "a", 1).by(&ann)).await.replays(&first);
    assert_eq!(door.send(post("k-2", "a", 1).by(&eve)).await.is_new()["n"], 2);

    // I-16: the token is taken away, and with it the answers.
    let tokens = std::fs::read_to_string(scene.cli.place.folder.join("tokens")).unwrap();
    let without: Vec<_> = tokens.lines().filter(|line| !line.contains(" ann ")).collect();
    scene.cli.file("tokens", without.join("\n"));
    sleep(NOTICED).await;
    let revoked = door.send(post("k", "a", 1).by(&ann)).await;
    revoked.is("unauthenticated");
    assert!(!revoked.replayed && !String::from_utf8_lossy(&revoked.bytes).contains(&id), "{revoked:?}");

    // I-25: neither keys nor tokens are stored.
    let stored = scene.stored().await;
    for secret in [&ann, &bob, &eve, "Bearer", "too-many", "more-1"] {
        assert!(!stored.contains(secret), "{secret} is in the store");
    }
    scene.end().await;
}
