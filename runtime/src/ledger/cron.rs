//! The times of schedules. Pure: it is told the time.
//! In: handlers' schedules, the settings' changes to them, timers as they are stored. Out: all problems with them; the
//! next occurrence of each, as a timer of its key.
//!
//! A schedule is one timer, which the turn that it fires sets anew in the same commit. Its message carries the
//! expression that set it, so that an owner that reads it sees whether that is still the wanted one.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use uuid::Uuid;

use crate::clock::Millis;
use crate::handler::{CRON, SCHEDULE, Schedule, TIMER, TIMER_NAME};
use crate::handlers::Handlers;
use crate::message::{Draft, Message, check_name, keyed_hash};
use crate::settings::{CronSettings, Settings};
use crate::store::{ServiceKey, Timer, TimerWrite};

/// A schedule of a program, checked.
#[derive(Clone, Debug)]
pub struct Planned {
    of: ServiceKey,
    /// Its timer's name.
    name: Arc<str>,
    /// Expression and time zone, as people read them.
    words: String,
    cron: Cron,
    zone: TimeZone,
    payload: Bytes,
}

/// The schedules of each service, in the order of the services' indices; or all problems with them.
pub(crate) fn plan(handlers: &Handlers, settings: &Settings, now: Millis) -> Result<Vec<Arc<[Planned]>>, Vec<String>> {
    let mut problems = unknown(handlers, settings);
    let mut planned = Vec::new();
    for service in handlers.all() {
        let mut of_service: Vec<Planned> = Vec::new();
        for mut schedule in service.schedules() {
            let name = schedule.name.clone();
            let changed = settings.cron.iter().find(|cron| cron.service == service.name() && cron.name == name);
            if let Some(CronSettings { cron, zone, .. }) = changed {
                let own = |own: &mut String, other: &String| (!other.is_empty()).then(|| own.clone_from(other));
                own(&mut schedule.cron, cron);
                own(&mut schedule.zone, zone);
            }
            let known = |payload: &[u8]| service.key_of(&payload.into()).err().map(|error| error.to_string());
            match Planned::of(service.name(), schedule, now, known) {
                Ok(one) if of_service.iter().any(|other| (&other.name, &other.of) == (&one.name, &one.of)) => {
                    let (service, key) = (service.name(), &one.of.key);
                    problems.push(format!("schedule {name:?} of {service}: key {key:?} has two of this name"));
                }
                Ok(one) => of_service.push(one),
                Err(reasons) => {
                    let told = reasons.into_iter().map(|why| format!("schedule {name:?} of {}: {why}", service.name()));
                    problems.extend(told);
                }
            }
        }
        let off = |one: &Planned| {
            let mut sections = settings.cron.iter().filter(|cron| !cron.enabled && cron.service == service.name());
            sections.any(|cron| cron.name == one.name[CRON.len()..])
        };
        of_service.retain(|one| !off(one));
        planned.push(of_service.into());
    }
    if problems.is_empty() { Ok(planned) } else { Err(problems) }
}

/// Sections of the settings that change no schedule.
fn unknown(handlers: &Handlers, settings: &Settings) -> Vec<String> {
    let problem = |CronSettings { service, name, .. }: &CronSettings| {
        let Some(found) = handlers.all().iter().find(|known| known.name() == service) else {
            return Some(format!("cron {name:?}: {}", handlers.unknown(service)));
        };
        let names: Vec<_> = found.schedules().into_iter().map(|schedule| schedule.name).collect();
        let known = if names.is_empty() { "no schedules".to_owned() } else { names.join(", ") };
        (!names.contains(name)).then(|| format!("cron {name:?}: {service} has no such schedule; it has {known}"))
    };
    settings.cron.iter().filter_map(problem).collect()
}

impl Planned {
    /// The schedule, or each reason for which it is invalid; `undecodable` returns the reason for which the handler
    /// cannot read a message.
    fn of(
        service: &str,
        schedule: Schedule,
        now: Millis,
        undecodable: impl Fn(&[u8]) -> Option<String>,
    ) -> Result<Self, Vec<String>> {
        let Schedule { name, cron: expression, zone: zone_name, key, message } = schedule;
        let mut reasons = Vec::new();
        let mut fine = |reason: Option<String>| reasons.extend(reason);
        fine(name.is_empty().then(|| "its name is empty".to_owned()));
        let name = format!("{CRON}{name}");
        fine(check_name("name", name.as_bytes()).err().map(|error| error.to_string()));
        fine(check_name("key", key.as_str().as_bytes()).err().map(|error| error.to_string()));
        let unread = message.as_ref().map_or_else(|error| Some(error.to_string()), |payload| undecodable(payload));
        fine(unread.map(|error| format!("the handler cannot read its message: {error}")));
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let parsed = parser.parse(&expression);
        fine(parsed.as_ref().err().map(|error| format!("{expression:?} is not a cron expression: {error}")));
        let zone = TimeZone::get(&zone_name);
        let where_to = "name one of the IANA database, such as Europe/Berlin";
        fine(zone.is_err().then(|| format!("there is no time zone {zone_name:?}: {where_to}")));
        let (Ok(cron), Ok(zone), Ok(payload)) = (parsed, zone, message) else { return Err(reasons) };
        let of = ServiceKey { service: service.into(), key: key.as_str().into() };
        let words = format!("{expression} {zone_name}");
        let planned = Self { of, name: name.into(), words, cron, zone, payload };
        if planned.next(now).is_none() {
            reasons.push(format!("{expression:?} never comes"));
        }
        if reasons.is_empty() { Ok(planned) } else { Err(reasons) }
    }

    /// The first time after `after` that matches the expression; `None` if there is none any more.
    pub(crate) fn next(&self, after: Millis) -> Option<Millis> {
        let second = i64::try_from(after / 1_000).ok()?;
        let from = Timestamp::from_second(second).ok()?.to_zoned(self.zone.clone());
        let next = self.cron.find_next_occurrence(&from, false).ok()?;
        Millis::try_from(next.timestamp().as_millisecond()).ok()
    }

    /// The key that it is a schedule of.
    pub(crate) fn of_key(&self) -> &ServiceKey {
        &self.of
    }

    /// Service, key and name of its timer.
    #[cfg(feature = "simulation")]
    pub(crate) fn place(&self) -> (Arc<str>, Arc<str>, Arc<str>) {
        (self.of.service.clone(), self.of.key.clone(), self.name.clone())
    }

    /// True if `name` is its timer's.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        *self.name == *name
    }

    /// The next occurrence after `after`, as its timer is set: the time and the message.
    pub(crate) fn set_after(&self, after: Millis, hash_key: &[u8; 32]) -> Option<(Millis, Message)> {
        let at = self.next(after)?;
        Some((at, self.message(at, hash_key)?))
    }

    /// The message of the occurrence at `at`. Its id follows from schedule and time, so that it is the same whoever
    /// makes it.
    fn message(&self, at: Millis, hash_key: &[u8; 32]) -> Option<Message> {
        let (service, key) = (&*self.of.service, &*self.of.key);
        let at_bytes = at.to_le_bytes();
        let mut from = Vec::new();
        for part in [CRON.as_bytes(), service.as_bytes(), key.as_bytes(), self.name.as_bytes(), &at_bytes] {
            from.extend_from_slice(&part.len().to_le_bytes());
            from.extend_from_slice(part);
        }
        let id = Uuid::new_v8(keyed_hash(&from, hash_key)).to_string();
        let source = format!("perkey:{service}");
        let headers = [(TIMER_NAME, &*self.name), (SCHEDULE, self.words.as_str())];
        let draft =
            Draft { id: &id, key, kind: TIMER, source: &source, time: at, headers: &headers, payload: &self.payload };
        // Name, key and message were checked at the start.
        draft.build_unchecked().ok()
    }
}

/// The writes that make the `found` timers of schedules the `wanted` ones: missing ones are set, those of another
/// expression are set anew, those that nobody wants are removed. A time that has passed stays: it is handled late,
/// once. Timers of a service that is not `known` here wait for a program that has it.
pub(crate) fn reconcile<'a>(
    wanted: impl Iterator<Item = &'a Planned>,
    found: Vec<Timer>,
    known: impl Fn(&str) -> bool,
    (now, hash_key): (Millis, &[u8; 32]),
) -> Vec<TimerWrite> {
    let place = |timer: Timer| ((timer.of.clone(), timer.name.clone()), timer);
    let mut found: HashMap<_, _> = found.into_iter().map(place).collect();
    let write = |of: ServiceKey, name, set| TimerWrite { service: of.service, key: of.key, name, set };
    let mut writes = Vec::new();
    for planned in wanted {
        let there = found.remove(&(planned.of.clone(), planned.name.clone()));
        let of_this = |timer: &Timer| timer.message.header(SCHEDULE) == Some(&planned.words);
        let set = match there.filter(of_this) {
            Some(timer) if timer.message.payload() == planned.payload => continue,
            // The same times, another message.
            Some(timer) => planned.message(timer.due_at, hash_key).map(|message| (timer.due_at, message)),
            None => planned.set_after(now, hash_key),
        };
        writes.push(write(planned.of.clone(), planned.name.clone(), set));
    }
    let gone = found.into_values().filter(|timer| known(&timer.of.service));
    let mut gone: Vec<_> = gone.map(|timer| write(timer.of, timer.name, None)).collect();
    // One order for one seed.
    gone.sort_by(|a, b| (&a.service, &a.key, &a.name).cmp(&(&b.service, &b.key, &b.name)));
    writes.extend(gone);
    writes
}

/// True if a write ends a schedule that is wanted: its next time cannot be found, and it comes no more.
pub(crate) fn ends<'a>(mut wanted: impl Iterator<Item = &'a Planned>, write: &TimerWrite) -> bool {
    let is = |planned: &Planned| {
        (&planned.of.service, &planned.of.key, &planned.name) == (&write.service, &write.key, &write.name)
    };
    write.set.is_none() && wanted.any(is)
}

#[cfg(test)]
mod tests;
