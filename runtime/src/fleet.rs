//! The fleet: which worker owns which shard, by leases, assignment, takeover and hand-over.
//! In: signs of life of all workers, through the store. Out: orders for the root: which shards to take, to hand over,
//! to stop; the owner of a key.

pub mod assignment;
pub(crate) mod give_back;
pub(crate) mod heartbeat;
pub(crate) mod janitor;
pub mod lease;
pub(crate) mod messages;
pub(crate) mod root;

use crate::clock::Dice;
use crate::message::shard_of;
use crate::settings::Settings;
use crate::store::lease::{Code, Fleet, Worker, WorkerRow};

/// The worker that owns the shard of `key`, if its owner is alive.
pub fn owner_of<'a>(fleet: &'a Fleet, key: &str) -> Option<&'a WorkerRow> {
    let shards = u32::try_from(fleet.shards.len()).ok().filter(|shards| *shards > 0)?;
    let shard = shard_of(key, shards);
    let owner = fleet.shards.iter().find(|row| row.shard == shard)?.owner.as_deref()?;
    fleet.workers.iter().find(|row| row.worker.id == owner && row.is_alive())
}

/// This worker under a new incarnation: a process that starts again, or that was frozen for longer than its lease, is
/// another worker.
pub(crate) fn worker(settings: &Settings, code: Code) -> Worker {
    let incarnation = Dice::from_system().below(1 << 32);
    let name = match settings.ownership.worker.as_str() {
        "" => format!("{}-{}", rustix::system::uname().nodename().to_string_lossy(), std::process::id()),
        name => name.to_owned(),
    };
    Worker {
        id: format!("{name} ({incarnation:08x})"),
        address: settings.admin.listen.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        code,
        ..Worker::default()
    }
}

/// Earlier incarnations of the worker `id` that still look alive: a process that was started again under its name need
/// not wait for the lease of the one that it replaces.
pub(crate) fn predecessors<'a>(fleet: &'a Fleet, id: &'a str) -> impl Iterator<Item = &'a str> {
    let name = |id: &'a str| id.rsplit_once(" (").map_or(id, |(name, _)| name);
    let rows = fleet.workers.iter().filter(|row| row.is_alive()).map(|row| row.worker.id.as_str());
    rows.filter(move |other| *other != id && name(other) == name(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::worker::View;
    use crate::store::lease::LeaseRow;

    fn fleet() -> Fleet {
        let row = |id: &str, expires_in| WorkerRow {
            worker: Worker {
                id: id.to_owned(),
                address: format!("{id}:1"),
                code: Code::numbered(1),
                ..Worker::default()
            },
            expires_in,
        };
        let lease = |shard, owner: Option<&str>, number| LeaseRow {
            shard,
            owner: owner.map(str::to_owned),
            epoch: 1,
            code: Code::numbered(number),
        };
        let shards = vec![lease(0, Some("a"), 1), lease(1, Some("b"), 2), lease(2, None, 2), lease(3, Some("a"), 2)];
        Fleet { workers: vec![row("a", 10), row("b", -10)], shards }
    }

    #[test]
    fn shards_of_nobody_and_of_the_dead_have_no_owner() {
        assert_eq!((fleet().without_owner(), Fleet::default().without_owner()), (2, 0));
    }

    #[test]
    fn a_keys_owner_is_the_living_owner_of_its_shard() {
        let fleet = fleet();
        let key_of = |shard| (0..).map(|n| format!("k{n}")).find(|key| shard_of(key, 4) == shard).unwrap();
        let owner = |shard| owner_of(&fleet, &key_of(shard)).map(|row| row.worker.address.as_str());
        assert_eq!([owner(0), owner(1), owner(2), owner(3)], [Some("a:1"), None, None, Some("a:1")]);
        assert_eq!(owner_of(&Fleet::default(), "k"), None);
    }

    #[test]
    fn what_stands_in_the_way_is_said_with_what_to_do() {
        let mut view = View { fleet: fleet(), code: Code::numbered(1), ..View::default() };
        view.failure = Some("connection refused".to_owned());
        assert!(view.problems(5)[0].contains("no lease is in force: connection refused"), "{:?}", view.problems(5));
        (view.until, view.settled, view.expected, view.running) = (Some(10), true, vec![0, 3], vec![0]);
        let problems = view.problems(5);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert_eq!(problems[0], "shard 3 is being taken");
        assert!(problems[1].starts_with("shard 1 has no owner") && problems[2].contains("run the newer program"));
        assert!(view.problems(10)[0].contains("no lease"), "it has run out");
    }
}
