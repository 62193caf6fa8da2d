//! The layout of a commit's ids, its events and the stretches ahead of positions in their columns, whatever the
//! database.
//! In: a commit, or stored bytes. Out: bytes to store, or their values, or an error if they do not decode.

pub(crate) mod log;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};

use super::lease::Code;
use super::query::{CommitRow, EventRow};
use super::{Commit, EmittedEvent, SourceAhead, StoreError};
use crate::message::{Ahead, Message, Position, Print, Stretch, Taken, TakenId};

/// Bytes before an event's frame: its service's number, its cause, the frame's length.
pub(crate) const EVENT_HEAD: usize = 2 + 16 + 4;

/// Bytes of events in one page of the outbox: as many as a dispatcher can hold besides its window, and a statement can
/// read in time. The last commit whose events may be known already and the first that follows it always make a page.
pub(crate) const OUTBOX_BYTES_MAX: i64 = 8 << 20;

/// The ids that `commit` takes, one after the other.
pub(crate) fn lay_ids(commit: &Commit) -> Vec<u8> {
    let mut blob = Vec::with_capacity(commit.ids().count() * TakenId::BYTES);
    for id in commit.ids() {
        blob.extend_from_slice(&id.0);
    }
    blob
}

/// The prints of the ids that `commit` takes, in the same order; empty if none is known.
pub(crate) fn lay_prints(commit: &Commit) -> Vec<u8> {
    if commit.taken().all(|taken| taken.print == Print::UNKNOWN) {
        return Vec::new();
    }
    let mut blob = Vec::with_capacity(commit.ids().count() * Print::BYTES);
    for taken in commit.taken() {
        blob.extend_from_slice(&taken.print.0);
    }
    blob
}

/// The events of `commit` and their number. One about a dead letter may have no service.
pub(crate) fn lay_events(commit: &Commit, services: &BTreeMap<Arc<str>, u16>) -> (Vec<u8>, u64) {
    let bytes = commit.events().map(|event| EVENT_HEAD + event.message.frame().len()).sum();
    let mut blob = Vec::with_capacity(bytes);
    let mut count = 0;
    for event in commit.events() {
        let frame = event.message.frame();
        blob.put_u16_le(services.get(&event.service).copied().unwrap_or(EmittedEvent::NO_SERVICE));
        blob.put_slice(&event.cause);
        blob.put_u32_le(u32::try_from(frame.len()).expect("a frame is shorter than 4 GiB"));
        blob.put_slice(frame);
        count += 1;
    }
    (blob, count)
}

/// The versions of a code, as JSON.
pub(crate) fn lay_code(code: &Code) -> String {
    serde_json::to_string(&code.versions).expect("names and numbers are JSON")
}

/// The code with this number and these versions.
pub(crate) fn code(number: u32, versions: &str) -> Result<Code, StoreError> {
    let versions = serde_json::from_str(versions);
    let versions = versions.map_err(|error| StoreError::Corrupt(format!("code versions: {error}")))?;
    Ok(Code { number, versions })
}

/// The ids of a `commits.ids` blob.
pub(crate) fn ids(blob: &[u8]) -> Result<Vec<TakenId>, StoreError> {
    let (ids, rest) = blob.as_chunks::<{ TakenId::BYTES }>();
    if rest.is_empty() {
        return Ok(ids.iter().map(|raw| TakenId(*raw)).collect());
    }
    Err(StoreError::Corrupt(format!("a list of ids of {} bytes", blob.len())))
}

/// The ids of a `commits.ids` blob, each with its print of the `commits.prints` blob beside it.
pub(crate) fn taken(blob: &[u8], prints: &[u8]) -> Result<Vec<Taken>, StoreError> {
    let ids = ids(blob)?;
    if prints.is_empty() {
        return Ok(ids.into_iter().map(Taken::from).collect());
    }
    let (prints, rest) = prints.as_chunks::<{ Print::BYTES }>();
    if prints.len() != ids.len() || !rest.is_empty() {
        return Err(StoreError::Corrupt(format!("{} prints of {} ids", prints.len(), ids.len())));
    }
    Ok(ids.into_iter().zip(prints).map(|(id, print)| Taken { id, print: Print(*print) }).collect())
}

/// One stored id.
pub(crate) fn id(raw: &[u8]) -> Result<TakenId, StoreError> {
    raw.try_into().map(TakenId).map_err(|_| StoreError::Corrupt(format!("an id of {} bytes", raw.len())))
}

/// A stored message.
pub(crate) fn message(frame: Bytes) -> Result<Message, StoreError> {
    Message::from_frame(frame).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// The events of a `commits.events` blob as they lie there, each with its head; `None` for one that is cut short.
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
        let service = if number == EmittedEvent::NO_SERVICE { Some(Arc::from("")) } else { name(number) };
        let service = service.ok_or_else(|| StoreError::Corrupt(format!("there is no service number {number}")))?;
        let mut cause = [0; 16];
        blob.copy_to_slice(&mut cause);
        let length = blob.get_u32_le() as usize;
        if blob.len() < length {
            return Err(cut());
        }
        let message = message(blob.split_to(length))?;
        let seq = first_seq + events.len() as u64;
        events.push(EventRow { commit: commit.clone(), seq, event: EmittedEvent { service, cause, message } });
    }
    Ok(events)
}

// The stretches ahead: a version; for each source its name, and for each of its origins the name, the fingerprint of
// the first place and the stretches, all counted. A place is the difference of its record's number to the one before,
// then twice its index, plus one if the place is done for some services only: then their numbers follow, else the last
// place does. Numbers have seven bits a byte, the lowest first, and a byte above 127 is not the last one.

const AHEAD_VERSION: u8 = 1;

/// The stretches ahead as bytes; no bytes where there are none.
pub(crate) fn lay_ahead(ahead: &SourceAhead) -> Vec<u8> {
    let mut blob = Vec::new();
    if ahead.is_empty() {
        return blob;
    }
    blob.push(AHEAD_VERSION);
    lay_number(&mut blob, ahead.len() as u64);
    for (source, origins) in ahead {
        lay_text(&mut blob, source);
        lay_number(&mut blob, origins.len() as u64);
        for (origin, stretches) in origins {
            lay_text(&mut blob, origin);
            blob.put_u64_le(stretches.first().map_or(0, |first| first.from.mark));
            lay_number(&mut blob, stretches.len() as u64);
            let mut at = 0;
            for Stretch { from, to, services } in stretches {
                lay_place(&mut blob, &mut at, *from, !services.is_empty());
                if services.is_empty() {
                    lay_place(&mut blob, &mut at, *to, false);
                    continue;
                }
                lay_number(&mut blob, services.len() as u64);
                services.iter().for_each(|service| lay_number(&mut blob, u64::from(*service)));
            }
        }
    }
    blob
}

fn lay_number(blob: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        blob.push(number as u8 | 0x80);
        number >>= 7;
    }
    blob.push(number as u8);
}

fn lay_text(blob: &mut Vec<u8>, text: &str) {
    lay_number(blob, text.len() as u64);
    blob.extend_from_slice(text.as_bytes());
}

fn lay_place(blob: &mut Vec<u8>, at: &mut u64, place: Position, part: bool) {
    lay_number(blob, place.no.wrapping_sub(*at));
    lay_number(blob, u64::from(place.index) << 1 | u64::from(part));
    *at = place.no;
}

/// The stretches that [`lay_ahead`] laid. Only the first place of each origin has its fingerprint.
pub(crate) fn ahead(mut blob: &[u8]) -> Result<SourceAhead, StoreError> {
    if blob.is_empty() {
        return Ok(SourceAhead::new());
    }
    let read = if blob.get_u8() == AHEAD_VERSION { sources(&mut blob) } else { None };
    let read = read.filter(|_| blob.is_empty());
    read.ok_or_else(|| StoreError::Corrupt("what is done above positions is cut short, or of a newer form".to_owned()))
}

fn sources(blob: &mut &[u8]) -> Option<SourceAhead> {
    let mut sources = SourceAhead::new();
    for _ in 0..number(blob)? {
        let source = text(blob)?;
        let mut origins = Ahead::new();
        for _ in 0..number(blob)? {
            origins.insert(text(blob)?, stretches(blob)?);
        }
        sources.insert(source, origins);
    }
    Some(sources)
}

fn stretches(blob: &mut &[u8]) -> Option<Vec<Stretch>> {
    let mark = blob.try_get_u64_le().ok()?;
    let (mut stretches, mut at) = (Vec::new(), 0);
    for nth in 0..number(blob)? {
        let (from, part) = place(blob, &mut at)?;
        let from = Position { mark: if nth == 0 { mark } else { 0 }, ..from };
        let stretch = if part {
            let count = number(blob)?;
            let services = (0..count).map(|_| u16::try_from(number(blob)?).ok()).collect::<Option<_>>()?;
            Stretch { from, to: from, services }
        } else {
            Stretch { from, to: place(blob, &mut at)?.0, services: Vec::new() }
        };
        stretches.push(stretch);
    }
    Some(stretches)
}

fn number(blob: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = blob.try_get_u8().ok()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte <= 0x7f {
            return Some(number);
        }
    }
    None
}

fn text(blob: &mut &[u8]) -> Option<Arc<str>> {
    let length = usize::try_from(number(blob)?).ok()?;
    let (text, rest) = blob.split_at_checked(length)?;
    *blob = rest;
    std::str::from_utf8(text).ok().map(Arc::from)
}

fn place(blob: &mut &[u8], at: &mut u64) -> Option<(Position, bool)> {
    *at = at.wrapping_add(number(blob)?);
    let index = number(blob)?;
    Some((Position::new(*at, u32::try_from(index >> 1).ok()?), index & 1 == 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stretch() -> impl Strategy<Value = Stretch> {
        let position = || (any::<u64>(), any::<u32>()).prop_map(|(no, index)| Position::new(no, index));
        let part = (position(), prop::collection::vec(any::<u16>(), 1..4));
        prop_oneof![
            (position(), position()).prop_map(|(from, to)| Stretch { from, to, services: Vec::new() }),
            part.prop_map(|(from, services)| Stretch { from, to: from, services }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_done_ahead_comes_back_as_it_was_laid_and_never_cut(
            ahead in prop::collection::btree_map("[a-z]{1,9}", prop::collection::btree_map(".{0,9}",
                prop::collection::vec(stretch(), 1..5), 1..3), 0..3),
            mark: u64,
        ) {
            let mut laid = SourceAhead::new();
            for (source, origins) in ahead {
                let of = laid.entry(source.into()).or_default();
                of.extend(origins.into_iter().map(|(origin, stretches)| (Arc::from(origin), stretches)));
            }
            for stretches in laid.values_mut().flat_map(Ahead::values_mut) {
                let part = !stretches[0].services.is_empty();
                stretches[0].from.mark = mark;
                if part {
                    stretches[0].to = stretches[0].from;
                }
            }
            let blob = lay_ahead(&laid);
            prop_assert_eq!(blob.is_empty(), laid.is_empty());
            for end in 1..blob.len() {
                prop_assert!(super::ahead(&blob[..end]).is_err());
            }
            prop_assert_eq!(super::ahead(&blob).unwrap(), laid);
        }
    }

    #[test]
    fn ids_come_back_with_their_prints_and_without_where_there_are_none() {
        let taken = |n: u8| Taken { id: TakenId([n; TakenId::BYTES]), print: Print([n; Print::BYTES]) };
        let all = vec![taken(1), TakenId([2; TakenId::BYTES]).into(), taken(3)];
        let lay = |ids: &[Taken]| {
            let parts = ids.iter().map(|id| super::super::Part { ids: vec![*id], ..Default::default() }).collect();
            let commit = Commit { parts, ..Commit::default() };
            (lay_ids(&commit), lay_prints(&commit))
        };
        let (ids, prints) = lay(&all);
        assert_eq!(super::taken(&ids, &prints).unwrap(), all);
        for cut in 1..prints.len() {
            assert!(super::taken(&ids, &prints[cut..]).is_err(), "{cut} bytes are missing");
        }
        let before: Vec<Taken> = all.iter().map(|taken| taken.id.into()).collect();
        assert_eq!(lay(&before), (ids.clone(), Vec::new()));
        assert_eq!(super::taken(&ids, b"").unwrap(), before);
    }

    #[test]
    fn a_thousand_stretches_take_a_page() {
        let at = |no| Position::new(no, 0);
        let stretches = (0..1_000).map(|n| Stretch { from: at(20 * n), to: at(20 * n + 9), services: Vec::new() });
        let ahead = [("kafka".into(), [("t/0".into(), stretches.collect())].into())].into();
        assert!(lay_ahead(&ahead).len() <= 4 * 1_000 + 64, "{}", lay_ahead(&ahead).len());
    }
}
