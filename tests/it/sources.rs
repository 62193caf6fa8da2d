//! The tools that the suites of brokers' sources share: reading one, and its error when it cannot be read.
//! In: a source. Out: its deliveries, or its error.

use std::sync::Arc;
use std::time::Duration;

use perkey::unstable::message::Positions;
use perkey::unstable::transport::{Content, Delivery, Source, SourceError};

const BOUND: Duration = Duration::from_secs(60);

/// The next deliveries of a source; who waits in vain is told what was waited for, and what was seen until then.
pub(crate) async fn next(
    source: &mut dyn Source,
    max: usize,
    wanted: &str,
    seen: &dyn std::fmt::Debug,
) -> Result<Vec<Delivery>, SourceError> {
    let next = tokio::time::timeout(BOUND, source.fetch(max)).await;
    next.unwrap_or_else(|_| panic!("waited {BOUND:?} for {wanted}, and saw {seen:?}"))
}

/// Fetches at most `max` at a time until `count` deliveries have come.
pub(crate) async fn fetch_by(source: &mut dyn Source, max: usize, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        let some = next(source, max, &format!("{count} deliveries"), &all).await.unwrap();
        assert!(!some.is_empty() && some.len() <= max, "{} of at most {max}", some.len());
        all.extend(some);
    }
    assert_eq!(all.len(), count);
    all
}

/// Fetches until `count` deliveries have come.
pub(crate) async fn fetch(source: &mut dyn Source, count: usize) -> Vec<Delivery> {
    fetch_by(source, 500, count).await
}

/// Waits for the error that a source ends in, or tells of.
pub(crate) async fn error(source: &mut dyn Source) -> SourceError {
    let mut seen = 0;
    loop {
        match next(source, 500, "an error", &seen).await {
            Ok(more) => seen += more.len(),
            Err(error) => return error,
        }
    }
}

/// True if nothing more comes.
pub(crate) async fn is_dry(source: &mut dyn Source) -> bool {
    tokio::time::timeout(Duration::from_millis(500), source.fetch(9)).await.is_err()
}

/// Ids of messages that nothing routed.
pub(crate) fn ids(all: &[Delivery]) -> Vec<&str> {
    let id = |delivery| match delivery {
        &Delivery { content: Content::Unrouted(ref message), .. } => message.id(),
        other => panic!("{other:?}"),
    };
    all.iter().map(id).collect()
}

/// `tag-0`, `tag-1`, …
pub(crate) fn named(tag: &str, ids: std::ops::Range<u32>) -> Vec<String> {
    ids.map(|id| format!("{tag}-{id}")).collect()
}

/// Positions behind a delivery.
pub(crate) fn behind(delivery: &Delivery) -> Positions {
    Positions::from([(Arc::clone(&delivery.origin), delivery.position)])
}

/// It lost its place, and says all of that.
#[track_caller]
pub(crate) fn assert_lost(error: &SourceError, parts: &[&str]) {
    let text = error.to_string();
    assert!(matches!(error, SourceError::Lost { .. }), "{text}");
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
}

/// An error other than that it cannot be read for a moment.
pub(crate) async fn error_that_lasts(source: &mut dyn Source) -> SourceError {
    loop {
        match error(source).await {
            SourceError::Unavailable { .. } => {}
            lasting => return lasting,
        }
    }
}
