//! How a commit's ids and events lie in their columns, whatever the database.
//! In: a commit, or stored bytes. Out: bytes to store, or ids and events, or what does not decode.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};

use super::query::{CommitRow, EventRow};
use super::{Commit, Event, StoreError};
use crate::message::{Message, TakenId};

/// Bytes before an event's frame: its service's number, its cause, the frame's length.
pub(crate) const EVENT_HEAD: usize = 2 + 16 + 4;

/// Bytes of events in one page of the outbox: what a dispatcher holds besides its window, and a statement reads in time.
/// The last commit whose events may be known already and the first that follows it always make a page.
pub(crate) const OUTBOX_BYTES_MAX: i64 = 8 << 20;

/// The ids that `commit` takes, one after the other.
pub(crate) fn lay_ids(commit: &Commit) -> Vec<u8> {
    let mut blob = Vec::with_capacity(commit.ids().count() * TakenId::BYTES);
    for id in commit.ids() {
        blob.extend_from_slice(&id.0);
    }
    blob
}

/// The events of `commit` and their number; `Err` names a service that has no number.
pub(crate) fn lay_events(commit: &Commit, services: &BTreeMap<Arc<str>, u16>) -> Result<(Vec<u8>, u64), Arc<str>> {
    let bytes = commit.events().map(|event| EVENT_HEAD + event.message.frame().len()).sum();
    let mut blob = Vec::with_capacity(bytes);
    let mut count = 0;
    for event in commit.events() {
        let number = number_of(&event.service, services).ok_or_else(|| Arc::clone(&event.service))?;
        let frame = event.message.frame();
        blob.put_u16_le(number);
        blob.put_slice(&event.cause);
        blob.put_u32_le(u32::try_from(frame.len()).expect("a frame is shorter than 4 GiB"));
        blob.put_slice(frame);
        count += 1;
    }
    Ok((blob, count))
}

/// A service's number; of no service are events that tell of a dead letter of none.
fn number_of(service: &str, services: &BTreeMap<Arc<str>, u16>) -> Option<u16> {
    if service.is_empty() { Some(Event::NO_SERVICE) } else { services.get(service).copied() }
}

/// The ids of a `commits.ids` blob.
pub(crate) fn ids(blob: &[u8]) -> Result<Vec<TakenId>, StoreError> {
    let (ids, rest) = blob.as_chunks::<{ TakenId::BYTES }>();
    if rest.is_empty() {
        return Ok(ids.iter().map(|raw| TakenId(*raw)).collect());
    }
    Err(StoreError::Corrupt(format!("a list of ids of {} bytes", blob.len())))
}

/// One stored id.
pub(crate) fn id(raw: &[u8]) -> Result<TakenId, StoreError> {
    raw.try_into().map(TakenId).map_err(|_| StoreError::Corrupt(format!("an id of {} bytes", raw.len())))
}

/// A stored message.
pub(crate) fn message(frame: Bytes) -> Result<Message, StoreError> {
    Message::from_frame(frame).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// The events of a `commits.events` blob as they lie there, each with its head; nothing where it is cut short.
pub(crate) fn raw_events(mut blob: Bytes) -> impl Iterator<Item = Option<Bytes>> {
    std::iter::from_fn(move || {
        if blob.is_empty() {
            return None;
        }
        let length = blob.get(EVENT_HEAD - 4..EVENT_HEAD).map(|mut raw| EVENT_HEAD + raw.get_u32_le() as usize);
        match length.filter(|length| *length <= blob.len()) {
            Some(length) => Some(Some(blob.split_to(length))),
            None => {
                blob.clear();
                Some(None)
            }
        }
    })
}

/// The events of a `commits.events` blob, numbered from `first_seq`.
pub(crate) fn events(
    commit: &CommitRow,
    first_seq: u64,
    mut blob: Bytes,
    name: impl Fn(u16) -> Option<Arc<str>>,
) -> Result<Vec<EventRow>, StoreError> {
    let cut = || StoreError::Corrupt(format!("events of commit {} of shard {} are cut short", commit.no, commit.shard));
    let mut events = Vec::new();
    while !blob.is_empty() {
        if blob.len() < EVENT_HEAD {
            return Err(cut());
        }
        let number = blob.get_u16_le();
        let service = if number == Event::NO_SERVICE { Some(Arc::from("")) } else { name(number) };
        let service = service.ok_or_else(|| StoreError::Corrupt(format!("there is no service number {number}")))?;
        let mut cause = [0; 16];
        blob.copy_to_slice(&mut cause);
        let length = blob.get_u32_le() as usize;
        if blob.len() < length {
            return Err(cut());
        }
        let message = message(blob.split_to(length))?;
        let seq = first_seq + events.len() as u64;
        events.push(EventRow { commit: commit.clone(), seq, event: Event { service, cause, message } });
    }
    Ok(events)
}
