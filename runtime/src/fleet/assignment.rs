//! The assignment of shards to workers. Pure.
//! In: the fleet as the store has it. Out: for each shard the worker that should own it, the same on every worker.
//!
//! Rendezvous hashing with bounded load that keeps shards in place: a worker keeps the shards it owns up to its share
//! (S/W, for S mod W workers one more), the rest goes to the workers with room and the highest score for it. So a
//! worker that leaves moves only its own shards, and one that joins is given its share and nothing else moves.

use crate::message::ShardNo;
use crate::store::lease::{Fleet, LeaseRow, WorkerRow};

/// Returns whether a worker may own a shard: it stays, it knows the formats that are stored there, and the shard did
/// not just fail on it.
pub fn may_own(worker: &WorkerRow, shard: &LeaseRow) -> bool {
    let row = &worker.worker;
    worker.is_alive() && !row.draining && row.code.behind(&shard.code).is_none() && !row.cooling.contains(&shard.shard)
}

/// For each shard, in the order of `fleet.shards`, the id of the worker that should own it; `None` if no worker may.
pub fn assign(fleet: &Fleet) -> Vec<Option<&str>> {
    let mut workers: Vec<Candidate<'_>> =
        fleet.workers.iter().filter(|worker| worker.is_alive() && !worker.worker.draining).map(Candidate::of).collect();
    workers.sort_by_key(|place| place.id());
    let mut assigned: Vec<Option<usize>> = vec![None; fleet.shards.len()];
    for place in &mut workers {
        let owned = fleet.shards.iter().enumerate().filter(|(_, shard)| {
            shard.owner.as_deref() == Some(place.worker.worker.id.as_str()) && may_own(place.worker, shard)
        });
        place.kept = owned.map(|(at, _)| at).collect();
    }
    for (at, share) in shares(&workers, fleet.shards.len()).into_iter().enumerate() {
        let place = &mut workers[at];
        place.share = share;
        let worker = place.worker;
        // A shard that few others may own is kept before one that many may: else it has nowhere to go, and comes back
        // for ever.
        place.kept.sort_by_key(|kept| {
            let shard = &fleet.shards[*kept];
            let able = fleet.workers.iter().filter(|other| may_own(other, shard)).count();
            (able, std::cmp::Reverse(score(worker, shard.shard)))
        });
        place.kept.truncate(share);
        place.kept.iter().for_each(|kept| assigned[*kept] = Some(at));
    }
    let open: Vec<usize> = (0..fleet.shards.len()).filter(|at| assigned[*at].is_none()).collect();
    let mut tight = Vec::new();
    for at in open {
        match roomy(&workers, &fleet.shards[at]) {
            Some(to) => {
                workers[to].kept.push(at);
                assigned[at] = Some(to);
            }
            None => tight.push(at),
        }
    }
    squeeze(&mut workers, &fleet.shards, &tight, &mut assigned);
    assigned.into_iter().map(|to| to.map(|to| workers[to].id())).collect()
}

/// A worker with the shards that it was given so far.
struct Candidate<'a> {
    worker: &'a WorkerRow,
    /// The indices of its shards.
    kept: Vec<usize>,
    share: usize,
}

impl<'a> Candidate<'a> {
    fn of(worker: &'a WorkerRow) -> Self {
        Self { worker, kept: Vec::new(), share: 0 }
    }

    fn id(&self) -> &'a str {
        &self.worker.worker.id
    }
}

/// The number of shards that each worker should have: the odd ones go to the workers that have most already.
fn shares(workers: &[Candidate<'_>], shards: usize) -> Vec<usize> {
    let count = workers.len().max(1);
    let mut order: Vec<usize> = (0..workers.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(workers[*at].kept.len()));
    let mut shares = vec![shards / count; workers.len()];
    order.into_iter().take(shards % count).for_each(|at| shares[at] += 1);
    shares
}

fn able<'a>(workers: &'a [Candidate<'_>], shard: &'a LeaseRow) -> impl Iterator<Item = usize> + 'a {
    (0..workers.len()).filter(|at| may_own(workers[*at].worker, shard))
}

/// The worker for a shard that nobody keeps: the one with the highest score among those with room.
fn roomy(workers: &[Candidate<'_>], shard: &LeaseRow) -> Option<usize> {
    let roomy = able(workers, shard).filter(|at| workers[*at].kept.len() < workers[*at].share);
    roomy.max_by_key(|at| score(workers[*at].worker, shard.shard))
}

/// Places shards for which no worker that may own them has room: each stays where it is, or goes to the worker with the
/// fewest. Then shards move as long as that levels the loads, so that full workers do not swap for ever.
fn squeeze(workers: &mut [Candidate<'_>], shards: &[LeaseRow], tight: &[usize], assigned: &mut [Option<usize>]) {
    let least = |workers: &[Candidate<'_>], shard: &LeaseRow| {
        able(workers, shard).min_by_key(|at| {
            let worker = &workers[*at];
            (worker.kept.len(), std::cmp::Reverse(score(worker.worker, shard.shard)))
        })
    };
    for at in tight {
        let shard = &shards[*at];
        let owner = able(workers, shard).find(|to| shard.owner.as_deref() == Some(workers[*to].id()));
        assigned[*at] = owner.or_else(|| least(workers, shard));
        if let Some(to) = assigned[*at] {
            workers[to].kept.push(*at);
        }
    }
    loop {
        let lighter = |at: &usize| {
            let (from, to) = (assigned[*at]?, least(workers, &shards[*at])?);
            (workers[to].kept.len() + 1 < workers[from].kept.len()).then_some((*at, from, to))
        };
        // Each move makes the loads more equal, so this ends.
        let Some((at, from, to)) = tight.iter().find_map(lighter) else { return };
        workers[from].kept.retain(|kept| *kept != at);
        workers[to].kept.push(at);
        assigned[at] = Some(to);
    }
}

/// The rendezvous score of a worker for a shard.
fn score(worker: &WorkerRow, shard: ShardNo) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&shard.to_le_bytes()).update(worker.worker.id.as_bytes());
    let mut short = [0; 8];
    short.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(short)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::store::lease::{Code, Worker};

    fn worker(id: &str) -> WorkerRow {
        let worker = Worker { id: id.to_owned(), code: Code::numbered(1), ..Worker::default() };
        WorkerRow { worker, expires_in: 5_000 }
    }

    fn fleet(workers: &[&str], shards: u32) -> Fleet {
        let lease = |shard| LeaseRow { shard, owner: None, epoch: 1, code: Code::numbered(1) };
        Fleet { workers: workers.iter().map(|id| worker(id)).collect(), shards: (0..shards).map(lease).collect() }
    }

    /// Moves every shard as assigned; returns the number of shards that moved.
    fn settle(fleet: &mut Fleet) -> usize {
        let assigned: Vec<Option<String>> = assign(fleet).into_iter().map(|to| to.map(str::to_owned)).collect();
        let mut moved = 0;
        for (shard, to) in fleet.shards.iter_mut().zip(assigned) {
            moved += usize::from(shard.owner != to);
            shard.owner = to;
        }
        moved
    }

    fn loads(fleet: &Fleet) -> BTreeMap<String, usize> {
        let mut loads: BTreeMap<String, usize> = fleet.workers.iter().map(|row| (row.worker.id.clone(), 0)).collect();
        fleet.shards.iter().flat_map(|shard| &shard.owner).for_each(|owner| *loads.get_mut(owner).unwrap() += 1);
        loads
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|no| format!("worker-{no} ({:x})", no * 77_777)).collect()
    }

    fn settled(workers: usize, shards: u32) -> Fleet {
        let names = names(workers);
        let mut fleet = fleet(&names.iter().map(String::as_str).collect::<Vec<_>>(), shards);
        settle(&mut fleet);
        fleet
    }

    #[test]
    fn nobody_owns_what_nobody_may() {
        let mut one = fleet(&["a", "b"], 2);
        one.workers[0].worker.draining = true;
        one.workers[1].expires_in = 0;
        assert_eq!(assign(&one), [None, None]);
        let mut two = fleet(&["a"], 2);
        two.shards[0].code = Code::numbered(2);
        two.workers[0].worker.cooling = vec![1];
        assert_eq!(assign(&two), [None, None]);
        assert_eq!(assign(&fleet(&[], 1)), [None]);
    }

    #[test]
    fn the_newer_program_gets_what_only_it_knows() {
        let mut fleet = settled(2, 8);
        fleet.workers[1].worker.code = Code::numbered(2);
        fleet.shards.iter_mut().for_each(|shard| shard.code = Code::numbered(2));
        assert!(assign(&fleet).into_iter().all(|to| to == Some(fleet.workers[1].worker.id.as_str())));
    }

    proptest! {
        #[test]
        fn every_shard_has_one_worker_and_every_worker_its_share(workers in 1usize..12, shards in 1u32..80) {
            let fleet = settled(workers, shards);
            let loads = loads(&fleet);
            prop_assert_eq!(loads.values().sum::<usize>(), shards as usize);
            let (least, most) = (shards as usize / workers, (shards as usize).div_ceil(workers));
            prop_assert!(loads.values().all(|load| (least..=most).contains(load)), "{:?}", loads);
        }

        #[test]
        fn a_leaving_worker_moves_only_its_own(workers in 2usize..12, shards in 1u32..80, who in 0usize..12) {
            let mut fleet = settled(workers, shards);
            let gone = fleet.workers.remove(who % workers).worker.id;
            let had = fleet.shards.iter().filter(|shard| shard.owner.as_ref() == Some(&gone)).count();
            prop_assert_eq!(settle(&mut fleet), had);
            prop_assert!(loads(&fleet).values().all(|load| *load <= (shards as usize).div_ceil(workers - 1)));
        }

        #[test]
        fn a_joining_worker_is_given_its_share_and_nothing_else_moves(workers in 1usize..12, shards in 1u32..80) {
            let mut fleet = settled(workers, shards);
            fleet.workers.push(worker("newcomer"));
            let moved = settle(&mut fleet);
            prop_assert_eq!(moved, loads(&fleet)["newcomer"]);
            prop_assert!(moved <= (shards as usize).div_ceil(workers + 1));
        }

        #[test]
        fn what_is_assigned_once_stays_whoever_may_own_what(
            rows in prop::collection::vec((1u32..3, any::<bool>(), prop::collection::vec(0u32..12, 0..4)), 1..6),
            shards in prop::collection::vec((1u32..3, 0usize..8), 1..12),
        ) {
            let names = names(8);
            let mut fleet = Fleet::default();
            for ((version, draining, cooling), name) in rows.into_iter().zip(&names) {
                let mut row = worker(name);
                row.worker = Worker { code: Code::of([("s", version)]), draining, cooling, ..row.worker };
                fleet.workers.push(row);
            }
            for ((version, owner), shard) in shards.into_iter().zip(0..) {
                fleet.shards.push(LeaseRow { shard, owner: Some(names[owner].clone()), epoch: 1, code: Code::of([("s", version)]) });
            }
            let able = |fleet: &Fleet, shard: &LeaseRow| {
                fleet.workers.iter().filter(|row| may_own(row, shard)).map(|row| row.worker.id.clone()).collect::<Vec<_>>()
            };
            for (to, shard) in assign(&fleet).into_iter().zip(&fleet.shards) {
                let able = able(&fleet, shard);
                prop_assert_eq!(to.is_some(), !able.is_empty());
                prop_assert!(to.is_none_or(|to| able.iter().any(|id| id == to)));
            }
            // The fleet is soon at rest: no shard moves to and fro.
            let moves: Vec<usize> = (0..8).map(|_| settle(&mut fleet)).collect();
            prop_assert_eq!(moves[7], 0, "{:?}", moves);
        }

        #[test]
        fn the_answer_is_the_same_in_whatever_order_the_workers_are_read(
            workers in 1usize..8, shards in 1u32..40, seed in any::<u64>(),
        ) {
            let mut other = settled(workers, shards);
            other.workers.push(worker("newcomer"));
            let mut mixed = other.clone();
            let mut dice = crate::clock::Dice::seeded(seed);
            for at in (1..mixed.workers.len()).rev() {
                mixed.workers.swap(at, dice.below(at as u64 + 1) as usize);
            }
            prop_assert_eq!(assign(&other), assign(&mixed));
        }
    }
}
