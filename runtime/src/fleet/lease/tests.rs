//! Tests of a worker's lease, alone and among others over a store that keeps true time.
//! In: renewals that come, are late or are lost. Out: no shard in two places, none left alone.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::store::lease::{Code, LeaseRow, WorkerRow};

const TTL: Millis = 3_000;
const HEARTBEAT: Millis = 1_000;
const SHARDS: u32 = 5;

fn settings() -> OwnershipSettings {
    OwnershipSettings {
        shards: SHARDS,
        lease_ttl: Duration::from_millis(TTL),
        heartbeat: Duration::from_millis(HEARTBEAT),
        cool_down: Duration::from_millis(4_000),
        ..OwnershipSettings::default()
    }
}

fn worker(id: &str) -> Worker {
    Worker { id: id.to_owned(), code: Code::numbered(1), ..Worker::default() }
}

fn lease(id: &str) -> Lease {
    Lease::new(&settings(), worker(id))
}

/// A store that keeps true time and grants a shard only when its owner's lease has expired.
#[derive(Default)]
struct Model {
    workers: Vec<(Worker, Millis)>,
    owners: Vec<Option<String>>,
}

impl Model {
    fn new() -> Self {
        Self { workers: Vec::new(), owners: vec![None; SHARDS as usize] }
    }

    fn renew(&mut self, worker: &Worker, now: Millis) -> Fleet {
        self.workers.retain(|(row, _)| row.id != worker.id);
        self.workers.push((worker.clone(), now + TTL));
        self.fleet(now)
    }

    fn fleet(&self, now: Millis) -> Fleet {
        let left = |until: Millis| until.cast_signed() - now.cast_signed();
        let workers =
            self.workers.iter().map(|(row, until)| WorkerRow { worker: row.clone(), expires_in: left(*until) });
        let shards = (0..).zip(&self.owners).map(|(shard, owner)| LeaseRow {
            shard,
            owner: owner.clone(),
            epoch: 1,
            code: Code::numbered(1),
        });
        Fleet { workers: workers.collect(), shards: shards.collect() }
    }

    fn take(&mut self, shard: ShardNo, id: &str, now: Millis) -> bool {
        let owner = &mut self.owners[shard as usize];
        let alive = |owner: &str| self.workers.iter().any(|(row, until)| row.id == owner && *until > now);
        if owner.as_deref().is_some_and(|owner| owner != id && alive(owner)) {
            return false;
        }
        *owner = Some(id.to_owned());
        true
    }
}

/// A lease after two looks at a fleet with no other worker.
fn alone() -> (Lease, Model) {
    let (mut lease, mut model) = (lease("a"), Model::new());
    assert_eq!(lease.renewed(&model.renew(&worker("a"), 0), 0, 1), [], "one look is not enough");
    let orders = lease.renewed(&model.renew(&worker("a"), HEARTBEAT), HEARTBEAT, HEARTBEAT + 1);
    assert_eq!(orders, (0..SHARDS).map(|shard| Order::Take(shard, TakeReason::Free)).collect::<Vec<_>>());
    for shard in 0..SHARDS {
        assert!(model.take(shard, "a", HEARTBEAT + 1));
        assert_eq!(
            lease.taken(shard, HEARTBEAT + 6),
            Some((TakeReason::Free, HEARTBEAT + 5)),
            "free since the first look"
        );
        assert_eq!(lease.taken(shard, HEARTBEAT + 6), None, "it was told before");
    }
    (lease, model)
}

#[test]
fn shards_are_stopped_at_two_thirds_of_the_lease_counted_from_before_the_renewal() {
    let (mut lease, _) = alone();
    let until = HEARTBEAT + TTL * 2 / 3;
    assert_eq!((lease.until(), lease.tick(until - 1)), (Some(until), vec![]));
    assert_eq!(lease.tick(until), [Order::StopAll]);
    assert_eq!((lease.tick(until + 1), lease.until(), lease.is_lost()), (vec![], None, true));
    assert!(!lease.is_empty(), "it waits until they have ended");
    (0..SHARDS).for_each(|shard| lease.stopped(shard));
    assert!(lease.is_empty());
}

#[test]
fn a_store_with_another_number_of_shards_ends_the_process() {
    let (mut running, mut model) = alone();
    model.owners.truncate(2);
    let fleet = model.renew(&worker("a"), 2 * HEARTBEAT);
    let orders = running.renewed(&fleet, 2 * HEARTBEAT, 2 * HEARTBEAT + 1);
    assert_eq!((orders, running.is_lost()), (vec![Order::StopAll, Order::GiveUp(2)], true));
    // A worker that was frozen in between lost its lease first: it notices when it joins again, before it takes a
    // shard.
    let (mut frozen, _) = alone();
    assert_eq!(frozen.tick(HEARTBEAT + TTL), [Order::StopAll]);
    (0..SHARDS).for_each(|shard| frozen.stopped(shard));
    frozen.rejoin("b".to_owned());
    let fleet = model.renew(&worker("b"), 9 * TTL);
    assert!(frozen.renewed(&fleet, 9 * TTL, 9 * TTL + 1).contains(&Order::GiveUp(2)));
}

#[test]
fn an_answer_that_was_read_after_a_long_sleep_renews_nothing() {
    let (mut lease, mut model) = alone();
    let late = 2 * HEARTBEAT + TTL;
    let fleet = model.renew(&worker("a"), 2 * HEARTBEAT);
    assert_eq!(lease.renewed(&fleet, 2 * HEARTBEAT, late), [Order::StopAll]);
    let (mut lease, mut model) = alone();
    let fleet = model.renew(&worker("a"), late);
    assert_eq!(lease.renewed(&fleet, late, late + 1), [Order::StopAll], "its old lease was over before");
}

#[test]
fn a_worker_that_comes_back_is_another_one_and_begins_with_nothing() {
    let (mut lease, mut model) = alone();
    lease.tick(10_000);
    (0..SHARDS).for_each(|shard| lease.stopped(shard));
    lease.rejoin("a again".to_owned());
    let now = 10_001;
    assert_eq!(lease.renewed(&model.renew(lease.worker(), now), now, now), []);
    let next = now + HEARTBEAT;
    let orders = lease.renewed(&model.renew(&lease.worker().clone(), next), next, next);
    assert_eq!(orders.len(), SHARDS as usize);
    assert!(orders.iter().all(|order| matches!(order, Order::Take(_, TakeReason::Expired))), "{orders:?}");
}

#[test]
fn a_shard_that_another_worker_has_is_dropped_but_not_for_an_older_look() {
    let (mut lease, mut model) = alone();
    model.owners[3] = Some("b".to_owned());
    let fleet = model.renew(&worker("a"), 2 * HEARTBEAT);
    assert_eq!(lease.renewed(&fleet, HEARTBEAT, 2 * HEARTBEAT), [], "it was sent before the shard was taken");
    assert_eq!(lease.renewed(&fleet, 2 * HEARTBEAT, 2 * HEARTBEAT + 1), [Order::Drop(3)]);
}

#[test]
fn what_failed_too_often_is_left_to_others_until_it_has_cooled_down() {
    let (mut lease, mut model) = alone();
    lease.failed(2, HEARTBEAT + 2);
    model.owners[2] = None;
    assert_eq!(lease.worker().cooling, [2]);
    assert!(!lease.expected().contains(&2));
    for now in [2 * HEARTBEAT, 3 * HEARTBEAT, 4 * HEARTBEAT] {
        assert_eq!(lease.tick(now), []);
        assert_eq!(lease.renewed(&model.renew(&lease.worker().clone(), now), now, now + 1), []);
    }
    let now = HEARTBEAT + 2 + 4_000;
    lease.tick(now);
    let orders = lease.renewed(&model.renew(&lease.worker().clone(), now), now, now + 1);
    assert_eq!(orders, [Order::Take(2, TakeReason::Free)]);
}

#[test]
fn a_newcomer_is_handed_its_share_and_waits_for_it_in_a_hurry() {
    let (mut a, mut model) = alone();
    let mut b = lease("b");
    let mut released = Vec::new();
    for beat in 2..5 {
        let now = beat * HEARTBEAT;
        b.renewed(&model.renew(&worker("b"), now), now, now + 1);
        released.extend(a.renewed(&model.renew(&worker("a"), now), now, now + 1));
    }
    assert_eq!(released.len(), 2, "{released:?}");
    assert!(released.iter().all(|order| matches!(order, Order::Release(_))), "{released:?}");
    assert_eq!((b.expected(), b.pause()), (&[][..], HEARTBEAT / 10), "they run elsewhere until they are handed over");
}

#[test]
fn a_worker_that_says_it_leaves_is_not_waited_for() {
    let (mut a, mut model) = alone();
    let leaving = Worker { draining: true, ..worker("b") };
    for beat in 2..4 {
        model.renew(&leaving, beat * HEARTBEAT);
        a.renewed(&model.renew(&worker("a"), beat * HEARTBEAT), beat * HEARTBEAT, beat * HEARTBEAT + 1);
    }
    model.workers.retain(|(row, _)| row.id != "b");
    model.owners[0] = None;
    a.stopped(0);
    let now = 4 * HEARTBEAT;
    assert_eq!(a.renewed(&model.renew(&worker("a"), now), now, now + 1), [Order::Take(0, TakeReason::Free)]);
}

#[test]
fn a_draining_worker_takes_nothing() {
    let (mut lease, mut model) = alone();
    lease.drain();
    lease.stopped(1);
    model.owners[1] = None;
    let now = 2 * HEARTBEAT;
    assert_eq!(lease.renewed(&model.renew(&lease.worker().clone(), now), now, now + 1), []);
    assert!(lease.worker().draining && lease.expected().is_empty());
}

/// A worker of the simulation.
struct Sim {
    lease: Lease,
    name: usize,
    incarnation: u32,
    next: Millis,
    /// A renewal on its way: the time it was sent, the time of its answer, and the answer.
    flight: Option<(Millis, Millis, Option<Fleet>)>,
    runs: BTreeSet<ShardNo>,
    frozen_until: Millis,
}

impl Sim {
    fn step(&mut self, model: &mut Model, now: Millis, lost: bool, delay: Millis) {
        if now < self.frozen_until {
            return;
        }
        let mut orders = self.lease.tick(now);
        if self.lease.is_lost() && orders.is_empty() && self.lease.is_empty() {
            self.incarnation += 1;
            self.flight = None;
            self.next = now;
            self.lease.rejoin(format!("w{} ({})", self.name, self.incarnation));
        }
        match self.flight.take() {
            Some((sent, at, answer)) if at <= now => {
                self.next = sent + self.lease.pause();
                match answer {
                    Some(fleet) => {
                        orders.extend(self.lease.renewed(&fleet, sent, now));
                        self.next = now + self.lease.pause();
                    }
                    None => self.next = now + 100,
                }
            }
            Some(flight) => self.flight = Some(flight),
            None if now >= self.next && !self.lease.is_lost() => {
                let answer = (!lost).then(|| model.renew(&self.lease.worker().clone(), now));
                self.flight = Some((now, now + delay, answer));
            }
            None => {}
        }
        orders.into_iter().for_each(|order| self.obey(order, model, now));
    }

    fn obey(&mut self, order: Order, model: &mut Model, now: Millis) {
        let id = self.lease.worker().id.clone();
        match order {
            Order::Take(shard, _) if model.take(shard, &id, now) => {
                self.runs.insert(shard);
                self.lease.taken(shard, now);
            }
            Order::Take(shard, _) => self.lease.stopped(shard),
            // A run that does not end in time leaves the shard with its owner.
            Order::Release(shard) if (now / 50 + u64::from(shard)).is_multiple_of(4) => {
                self.runs.remove(&shard);
                self.lease.stopped(shard);
            }
            Order::Release(shard) => {
                self.runs.remove(&shard);
                model.owners[shard as usize] = None;
                self.lease.stopped(shard);
            }
            Order::Drop(shard) => {
                self.runs.remove(&shard);
                self.lease.stopped(shard);
            }
            Order::StopAll => {
                self.runs.clear();
                (0..SHARDS).for_each(|shard| self.lease.stopped(shard));
            }
            Order::GiveUp(shards) => panic!("there are {SHARDS} shards, not {shards}"),
        }
    }
}

proptest! {
    #[test]
    fn no_shard_runs_twice_and_none_is_left_alone(
        seed in any::<u64>(),
        count in 1usize..5,
        freezes in prop::collection::vec((0usize..5, 0u64..40_000, 0u64..12_000), 0..5),
    ) {
        let mut dice = crate::clock::Dice::seeded(seed);
        let mut model = Model::new();
        let mut workers: Vec<Sim> = (0..count).map(|name| Sim {
            lease: lease(&format!("w{name} (0)")),
            name,
            incarnation: 0,
            next: dice.below(5_000),
            flight: None,
            runs: BTreeSet::new(),
            frozen_until: 0,
        }).collect();
        const TROUBLE: Millis = 60_000;
        for now in (0..TROUBLE + 20_000).step_by(50) {
            for (who, at, long) in &freezes {
                if *at / 50 == now / 50 {
                    workers[*who % count].frozen_until = now + long;
                }
            }
            for worker in &mut workers {
                let lost = now < TROUBLE && dice.unit() < 0.3;
                let delay = dice.below(if now < TROUBLE { 2_500 } else { 50 });
                worker.step(&mut model, now, lost, delay);
            }
            for shard in 0..SHARDS {
                // A frozen worker does nothing with its shards; it stops them before anything else when it wakes.
                let here = workers.iter().filter(|w| now >= w.frozen_until && w.runs.contains(&shard)).count();
                prop_assert!(here <= 1, "shard {shard} runs in {here} places at {now}");
            }
        }
        let loads: Vec<usize> = workers.iter().map(|worker| worker.runs.len()).collect();
        prop_assert_eq!(loads.iter().sum::<usize>(), SHARDS as usize, "{:?}", loads);
        let share = (SHARDS as usize).div_ceil(count);
        prop_assert!(loads.iter().all(|load| *load <= share), "{:?}", loads);
    }
}
