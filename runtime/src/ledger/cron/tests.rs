//! Times of schedules: gaps and overlaps of zones, bad expressions, what is to be written after a change.
//! In: expressions and times. Out: the next times, problems, writes.

use super::*;
use crate::clock::{from_rfc3339, rfc3339};
use crate::handler::{Fault, Handler, Turn};
use crate::message::Key;

struct Tills(Vec<Schedule>);

impl Handler for Tills {
    const SERVICE: &'static str = "tills";
    type Message = String;
    type State = ();

    fn key(&self, _: &String) -> Key {
        "till".into()
    }

    async fn handle(&self, (): &mut (), _: String, _: &mut Turn) -> Result<(), Fault> {
        Ok(())
    }

    fn schedules(&self) -> Vec<Schedule> {
        self.0.clone()
    }
}

const HASH_KEY: [u8; 32] = [7; 32];

fn at(text: &str) -> Millis {
    from_rfc3339(text).unwrap()
}

fn schedule(cron: &str, zone: &str) -> Schedule {
    Schedule::new("close", cron, "till-1", &"close").zone(zone)
}

fn planned(
    schedules: impl IntoIterator<Item = Schedule>,
    cron: Vec<CronSettings>,
) -> Result<Vec<Planned>, Vec<String>> {
    let handlers = Handlers::new().with(Tills(schedules.into_iter().collect()));
    let settings = Settings { cron, ..Settings::default() };
    Ok(plan(&handlers, &settings, at("2026-01-01T00:00:00Z"))?[0].to_vec())
}

fn one(cron: &str, zone: &str) -> Planned {
    planned([schedule(cron, zone)], Vec::new()).unwrap().remove(0)
}

/// The first times after `from`.
fn times(cron: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
    let planned = one(cron, zone);
    let next = |after: &Millis| planned.next(*after);
    std::iter::successors(next(&at(from)), next).take(count).map(rfc3339).collect()
}

#[test]
fn an_expression_is_meant_in_its_zone() {
    let berlin = times("30 9 * * MON-FRI", "Europe/Berlin", "2026-01-02T08:30:00Z", 2);
    assert_eq!(berlin, ["2026-01-05T08:30:00Z", "2026-01-06T08:30:00Z"], "a Friday's own time is not after itself");
    assert_eq!(times("30 9 * * *", "America/New_York", "2026-01-01T00:00:00Z", 1), ["2026-01-01T14:30:00Z"]);
    let seconds = times("*/20 * * * * *", "UTC", "2026-01-01T00:00:00.900Z", 3);
    assert_eq!(seconds, ["2026-01-01T00:00:20Z", "2026-01-01T00:00:40Z", "2026-01-01T00:01:00Z"]);
    assert_eq!(times("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", 1), ["2028-02-29T00:00:00Z"]);
    assert_eq!(times("@monthly", "UTC", "2026-01-01T00:00:00Z", 1), ["2026-02-01T00:00:00Z"]);
}

#[test]
fn a_time_that_the_clock_leaps_over_comes_when_it_has_leapt() {
    // In Berlin 02:00 to 03:00 does not exist on 2026-03-29.
    let daily = times("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z", 3);
    assert_eq!(daily, ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
    // What comes at intervals goes on by the hours that exist.
    let hourly = times("30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 3);
    assert_eq!(hourly, ["2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z", "2026-03-29T02:30:00Z"]);
}

#[test]
fn a_time_that_the_clock_shows_twice_comes_once_and_an_interval_goes_on() {
    // In Berlin 02:00 to 03:00 comes twice on 2026-10-25.
    let daily = times("30 2 * * *", "Europe/Berlin", "2026-10-24T10:00:00Z", 2);
    assert_eq!(daily, ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
    let hourly = times("30 * * * *", "Europe/Berlin", "2026-10-24T23:00:00Z", 4);
    let expected = ["2026-10-24T23:30:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"];
    assert_eq!(hourly, expected);
}

#[test]
fn everything_that_is_wrong_is_told() {
    let unreadable = Schedule::new("number", "@hourly", "till-1", &5);
    let many = [
        schedule("61 * * * *", "UTC"),
        schedule("* * * *", "UTC"),
        schedule("0 0 30 2 *", "UTC"),
        schedule("0 0 * * * 2026", "UTC"),
        Schedule::new("", "@daily", "", &"close").zone("Europe/Entenhausen"),
        unreadable,
        Schedule::new("twice", "@daily", "till-1", &"close"),
        Schedule::new("twice", "@hourly", "till-1", &"close"),
    ];
    let cron = |service: &str, name: &str| CronSettings {
        service: service.to_owned(),
        name: name.to_owned(),
        cron: String::new(),
        zone: String::new(),
        enabled: true,
    };
    let problems = planned(many, vec![cron("tills", "open"), cron("shops", "close")]).unwrap_err();
    let expected = [
        "cron \"open\": tills has no such schedule; it has close, close",
        "cron \"close\": there is no service \"shops\"",
        "schedule \"close\" of tills: \"61 * * * *\" is not a cron expression",
        "schedule \"close\" of tills: \"* * * *\" is not a cron expression",
        "schedule \"close\" of tills: \"0 0 30 2 *\" never comes",
        "schedule \"close\" of tills: \"0 0 * * * 2026\" is not a cron expression",
        "schedule \"\" of tills: its name is empty",
        "schedule \"\" of tills: the key is empty",
        "schedule \"\" of tills: there is no time zone \"Europe/Entenhausen\"",
        "schedule \"number\" of tills: the handler cannot read its message: invalid type",
        "schedule \"twice\" of tills: key \"till-1\" has two of this name",
    ];
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.starts_with(expected), "{problem}\n  instead of {expected}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:?}");
}

#[test]
fn the_settings_change_a_schedule_or_turn_it_off() {
    let section = |cron: &str, zone: &str, enabled| CronSettings {
        service: "tills".to_owned(),
        name: "close".to_owned(),
        cron: cron.to_owned(),
        zone: zone.to_owned(),
        enabled,
    };
    let with = |section| planned([schedule("0 18 * * *", "UTC")], vec![section]);
    let changed = with(section("0 17 * * *", "Europe/Berlin", true)).unwrap();
    assert_eq!(changed[0].next(at("2026-01-01T00:00:00Z")), Some(at("2026-01-01T16:00:00Z")));
    let zone = with(section("", "Europe/Berlin", true)).unwrap();
    assert_eq!(zone[0].next(at("2026-01-01T00:00:00Z")), Some(at("2026-01-01T17:00:00Z")));
    assert!(with(section("", "", false)).unwrap().is_empty());
    assert!(with(section("noon", "", false)).unwrap_err()[0].contains("\"noon\" is not a cron expression"));
}

#[test]
fn an_occurrence_has_an_id_of_its_own() {
    let (daily, hourly) = (one("@daily", "UTC"), one("@hourly", "UTC"));
    let midnight = at("2026-01-02T00:00:00Z");
    let (due, first) = daily.set_after(midnight - 1, &HASH_KEY).unwrap();
    assert_eq!((due, first.time(), first.kind()), (midnight, midnight, TIMER));
    assert_eq!(first.header(SCHEDULE), Some("@daily UTC"));
    assert_eq!(first, daily.set_after(midnight - 5_000, &HASH_KEY).unwrap().1, "whoever makes it");
    let (_, second) = daily.set_after(midnight, &HASH_KEY).unwrap();
    assert_ne!(first.id(), second.id());
    assert_eq!(first.id(), hourly.set_after(midnight - 1, &HASH_KEY).unwrap().1.id(), "one time is one occurrence");
}

#[test]
fn what_the_store_has_of_schedules_is_made_what_it_should_be() {
    let now = at("2026-01-10T12:00:00Z");
    let wanted = [one("@daily", "UTC")];
    let run = |found: Vec<Timer>| reconcile(wanted.iter(), found, |service| service == "tills", now, &HASH_KEY);
    let timer = |planned: &Planned, after: Millis| {
        let (due_at, message) = planned.set_after(after, &HASH_KEY).unwrap();
        Timer { of: planned.of.clone(), name: planned.name.clone(), due_at, message }
    };
    let set =
        |writes: &[TimerWrite]| writes.iter().map(|write| write.set.as_ref().map(|(at, _)| *at)).collect::<Vec<_>>();
    let (missed, next) = (at("2026-01-08T00:00:00Z"), at("2026-01-11T00:00:00Z"));
    assert_eq!(set(&run(Vec::new())), [Some(next)], "a missing one");
    assert_eq!(set(&run(vec![timer(&wanted[0], missed - 1)])), [], "one that was missed fires late");
    let other = one("@hourly", "UTC");
    assert_eq!(set(&run(vec![timer(&other, missed)])), [Some(next)], "another expression counts from now");
    let said = planned([Schedule::new("close", "@daily", "till-1", &"shut")], Vec::new()).unwrap();
    let writes = run(vec![timer(&said[0], missed - 1)]);
    let (due, message) = writes[0].set.clone().unwrap();
    assert_eq!((due, message.payload()), (missed, &br#""close""#[..]), "another message keeps the time");
    let gone = Timer { name: "cron:gone".into(), ..timer(&wanted[0], now) };
    let of = ServiceKey { service: "elsewhere".into(), key: "k".into() };
    let foreign = Timer { of, ..gone.clone() };
    let writes = run(vec![timer(&wanted[0], now), gone, foreign]);
    assert_eq!((set(&writes), &*writes[0].name), (vec![None], "cron:gone"), "a removed one");
}

#[test]
fn a_schedule_that_comes_no_more_is_told_from_one_that_nobody_wants() {
    // After the last second that there is.
    let (planned, now) = (one("0 12 * * *", "UTC"), at("9999-12-30T21:00:00Z"));
    assert_eq!(planned.next(now), None, "no next time can be found");
    let writes = reconcile([&planned].into_iter(), Vec::new(), |_| true, now, &HASH_KEY);
    assert!(writes.len() == 1 && ends([&planned].into_iter(), &writes[0]), "{writes:?}");
    assert!(!ends(std::iter::empty(), &writes[0]), "nobody wants it");
    let before = reconcile([&planned].into_iter(), Vec::new(), |_| true, at("2026-01-01T00:00:00Z"), &HASH_KEY);
    assert!(!ends([&planned].into_iter(), &before[0]), "it comes again");
}
