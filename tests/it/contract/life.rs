//! Rows about time and trouble: faults, crashes, expiry.

use std::time::Duration;

use futures_util::future::join_all;
use perkey::sleep;

use super::provider::Mood;
use super::rows::{charge, post, postings, settled};
use super::{Kind, Scene, Sent, door};

/// I-18 (what failed for good is stored), I-19, I-20.
pub(super) async fn hold(protocol: &str, kind: Kind) {
    let mut scene = Scene::new(kind, &["gateway.wait=500ms", "retry.attempts=2"]).await;
    let before = door(protocol, &scene);
    scene.provider.is(Mood::Nonsense);
    let failed = settled(&*before, &charge("fails", "fails")).await;
    failed.is("failed");
    scene.provider.is(Mood::Fine);
    let again = before.send(charge("fails", "fails")).await;
    assert!(again.replayed, "{again:?}");
    again.is_same(&failed);
    // Its sender was told: under another key the order can be paid.
    assert!(settled(&*before, &charge("again", "fails")).await.code.is_empty());

    let first = before.send(post("done", "a", 1)).await;
    first.is_new();
    scene.provider.is(Mood::Silent);
    let taken = scene.provider.taken();
    before.send(charge("runs", "runs")).await.is("in_flight");
    scene.crash().await;
    let after = door(protocol, &scene);
    settled(&*after, &post("done", "a", 1)).await.replays(&first);
    // It runs again, by the process that is there now; a late answer to the one that died changes nothing.
    after.send(charge("runs", "runs")).await.is("in_flight");
    scene.provider.is(Mood::Fine);
    let done = settled(&*after, &charge("runs", "runs")).await;
    assert!(done.code.is_empty(), "{done:?}");
    settled(&*after, &charge("runs", "runs")).await.is_same(&done);
    assert_eq!(scene.provider.taken(), taken + 1, "one token, one charge");
    assert_eq!(scene.count("SELECT count(*) FROM payments WHERE order_id = 'runs'").await, 1);
    assert_eq!(postings(&*after, "a").await, 1);

    // Told to end, it answers what it has in hand before it goes.
    scene.provider.is(Mood::Silent);
    let last = charge("last", "last");
    let sending = after.send(last);
    let ending = async {
        sleep(Duration::from_millis(200)).await;
        scene.terminate().await;
        scene.provider.is(Mood::Fine);
    };
    let (answer, ()) = tokio::join!(sending, ending);
    assert!(answer.code.is_empty() || answer.code == "in_flight", "{answer:?}");
    assert_eq!(scene.ended().await, Some(0));
}

/// I-22: a key is kept so long, and is free again afterwards.
pub(super) async fn expires(protocol: &str, kind: Kind) {
    let scene = Scene::new(kind, &["gateway.keep=3s", "gateway.wait=2s"]).await;
    let door = door(protocol, &scene);
    let first = door.send(post("k", "a", 1)).await;
    first.is_new();
    let mut order = Sent::new("orders.place", "o", super::rows::posting("a", 5));
    order.body.as_object_mut().unwrap().remove("at");
    door.send(order.clone()).await.is_new();
    sleep(Duration::from_secs(1)).await;
    door.send(post("k", "a", 1)).await.replays(&first);
    sleep(Duration::from_secs(3)).await;
    let answers = join_all((0..64).map(|_| door.send(post("k", "a", 1)))).await;
    let fine = |code: &str| code.is_empty() || code == "in_flight";
    assert!(answers.iter().all(|answer| fine(&answer.code)), "{answers:?}");
    assert_eq!(postings(&*door, "a").await, 2, "once more, not 64 times");
    // What a create made is still there, under the same id.
    door.send(order).await.is("already_exists");
}
