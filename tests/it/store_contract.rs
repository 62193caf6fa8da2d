//! What every store promises, written once and run on each driver.
//! In: a place with a prepared store. Out: the same behaviour everywhere.

use crate::fixture::{Place, committed, everything, full, setup};

use perkey::store::Outcome;

/// Runs each promise on each driver.
macro_rules! contract {
    ($($driver:ident: $place:expr;)* => $promises:tt) => {
        $(contract!(@driver $driver, $place, $promises);)*
    };
    (@driver $driver:ident, $place:expr, [$($promise:ident),* $(,)?]) => {
        mod $driver {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise($place.await).await;
            })*
        }
    };
}

contract! {
    sqlite: crate::fixture::SqlitePlace::new();
    => [
        a_commit_is_complete,
        a_stale_epoch_writes_nothing,
    ]
}

async fn a_commit_is_complete(mut place: Box<impl Place>) {
    let store = place.store();
    let identity = store.prepare(setup()).await.unwrap();
    let epoch = store.take(1, "me").await.unwrap().epoch;
    committed(&store, &full(&identity, 1, epoch, 1, "a")).await;
    let before = everything(&*place, &["a"]).await;
    println!("{before}");
    drop(store);
    place.restart().await;
    assert_eq!(before, everything(&*place, &["a"]).await);
}

async fn a_stale_epoch_writes_nothing(place: Box<impl Place>) {
    let store = place.store();
    let identity = store.prepare(setup()).await.unwrap();
    let stale = store.take(1, "me").await.unwrap().epoch;
    store.take(1, "you").await.unwrap();
    let before = everything(&*place, &["a"]).await;
    let outcome = store.commit(&full(&identity, 1, stale, 1, "a")).await;
    assert!(matches!(outcome, Outcome::Fenced), "{outcome:?}");
    assert_eq!(before, everything(&*place, &["a"]).await);
}
