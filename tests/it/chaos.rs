//! The scenarios of `perkey-chaos`, each with a seed and small enough for every run of the tests.
//! In: the real binary, or an engine in this process. Out: nothing lost, nothing counted twice.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use perkey::unstable::message::shard_of;
use perkey::unstable::metrics::Child;
use perkey_chaos::fleet::faults::{On, Scenario};
use perkey_chaos::fleet::load::{Gauge, Load, Pace, Way};
use perkey_chaos::fleet::servers::Servers;
use perkey_chaos::fleet::streams::Streams;
use perkey_chaos::fleet::topics::Topics;
use perkey_chaos::kill::{self, Mode};
use perkey_chaos::postings::Postings;
use perkey_chaos::provider::Faults;
use perkey_chaos::{
    ChaosError, Verdict, calls, checkouts, children, fleet, flood, neighbours, process, suspects, timers,
};

fn holds(again: &str, said: &[String], verdict: Result<Verdict, ChaosError>) {
    let again = format!("again: cargo run -p perkey-chaos -- {again}");
    let said = said.join("\n");
    let violations = verdict.map_or_else(|error| vec![error.to_string()], |verdict| verdict.violations);
    assert!(violations.is_empty(), "\n{said}\n{}\n{again}", violations.join("\n"));
}

async fn killed(mode: Mode, word: &str) {
    let plan = kill::Plan { binary: None, mode, kills: 8, lines: 20_000, accounts: 2_000, seed: 8 };
    let mut said = Vec::new();
    let verdict = kill::kill(&plan, &mut |line| said.push(line.to_owned())).await;
    let again = format!("kill --mode {word} --kills 8 --lines 20000 --accounts 2000 --seed 8");
    holds(&again, &said, verdict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_killed_at_any_instant_counts_each_line_once() {
    killed(Mode::Import, "import").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_beside_an_import_counts_each_line_once() {
    killed(Mode::Up, "up").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkouts_under_kills_and_a_faulty_provider_leave_the_books_right() {
    let faults = Faults { fail: 0.1, hang: 0.01, lose: 0.01, ..Faults::default() };
    let plan = checkouts::Plan { binary: None, kills: 3, checkouts: 300, faults, seed: 6 };
    let mut said = Vec::new();
    let verdict = checkouts::checkouts(&plan, &mut |line| said.push(line.to_owned())).await;
    holds("checkouts --kills 3 --checkouts 300 --seed 6", &said, verdict);
}

/// Not a test by itself: what the next ones start as a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_that_a_message_may_end() {
    suspects::work().await.unwrap();
}

#[derive(Clone, Copy, Default)]
struct Suspected {
    import: bool,
    deadly: bool,
    call: bool,
    kills: u32,
}

async fn suspected(Suspected { import, deadly, call, kills }: Suspected) {
    let args = ["--exact", "chaos::worker_that_a_message_may_end", "--nocapture"].map(str::to_owned);
    let worker = Some((std::env::current_exe().unwrap(), args.to_vec()));
    let plan = suspects::Plan { worker, messages: 600, deadly, import, call, kills, binary: None, seed: 3 };
    let mut said = Vec::new();
    let verdict = suspects::suspects(&plan, &mut |line| said.push(line.to_owned())).await;
    holds("suspects --messages 600 --seed 3", &said, verdict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_ends_the_process_is_a_dead_letter_after_seven_starts() {
    suspected(Suspected { deadly: true, ..Suspected::default() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_ends_the_process_and_comes_by_import_is_a_dead_letter_after_seven_starts() {
    suspected(Suspected { import: true, deadly: true, ..Suspected::default() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_from_outside_make_no_message_a_dead_letter() {
    suspected(Suspected { kills: 12, ..Suspected::default() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_ends_the_process_is_a_stored_error_after_seven_starts() {
    suspected(Suspected { deadly: true, call: true, ..Suspected::default() }).await;
}

async fn disturbed(what: neighbours::What, word: &str) {
    let plan = neighbours::Plan { what, seconds: 3, rate: 200 };
    let mut said = Vec::new();
    let verdict = neighbours::neighbours(&plan, &mut |line| said.push(line.to_owned())).await;
    holds(&format!("neighbours --of {word} --seconds 3 --rate 200"), &said, verdict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_key_costs_no_attempt_and_counts_once() {
    disturbed(neighbours::What::Slow, "slow").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dependency_that_is_away_costs_no_attempt_and_nothing_is_lost() {
    disturbed(neighbours::What::Away, "away").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_timers_fire_once_across_restarts() {
    let mut said = Vec::new();
    let plan = timers::Plan { timers: 3_000, seconds: 4, restarts: 2 };
    let verdict = timers::timers(&plan, &mut |line| said.push(line.to_owned())).await;
    holds("timers --timers 3000 --seconds 4 --restarts 2", &said, verdict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_child_that_is_killed_comes_back_and_loses_nothing() {
    let mut said = Vec::new();
    let plan = children::Plan { children: Child::ALL.to_vec(), times: 10, seed: 5 };
    let verdict = children::children(&plan, &mut |line| said.push(line.to_owned())).await;
    holds("children --times 10 --seed 5", &said, verdict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_waits_in_the_log_and_not_in_memory() {
    let verdict = flood::flood(&flood::Plan { seconds: 3, seed: 4 }).await;
    holds("flood --seconds 3 --seed 4", &[], verdict);
}

/// A small load that went its way.
async fn loaded(way: Way) -> Postings {
    let gauge = Arc::new(Gauge::default());
    let pace = Pace { seed: 1, accounts: 200, rate: 5_000, ahead_max: 1_000 };
    let load = Load::start(way, pace, Arc::clone(&gauge));
    let full = || gauge.unique.load(Ordering::Relaxed) == pace.ahead_max;
    process::until("the load was not put", Duration::from_secs(30), async || full()).await.unwrap();
    load.finish().await.unwrap()
}

fn lies_by_shards(partitions: &[Vec<Vec<u8>>], given: &Postings) {
    for (partition, values) in (0..).zip(partitions) {
        for value in values {
            let posting: serde_json::Value = serde_json::from_slice(value).unwrap();
            assert_eq!(shard_of(posting["account"].as_str().unwrap(), 8), partition);
        }
    }
    let put: usize = partitions.iter().map(Vec::len).sum();
    assert_eq!(put as u64, given.unique() as u64 + given.repeats());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_lies_in_the_partitions_of_its_shards() {
    let kafka = Servers::running(On::Kafka).unwrap().broker;
    let topics = Topics::make(&kafka, &format!("load_{}", std::process::id())).await.unwrap();
    let given = loaded(Way::Topic(topics.producer().unwrap())).await;
    lies_by_shards(&topics.read(&topics.input).await.unwrap(), &given);
    topics.remove().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_lies_in_the_streams_of_its_shards() {
    let rabbitmq = Servers::running(On::Rabbitmq).unwrap().broker;
    let streams = Streams::make(&rabbitmq, &format!("load_{}", std::process::id())).await.unwrap();
    let given = loaded(Way::Streams(streams.producer())).await;
    // Another reader's marks are not records.
    for _ in 0..2 {
        lies_by_shards(&streams.read(&streams.input).await.unwrap(), &given);
    }
    streams.remove().await.unwrap();
}

/// Three workers under a small load, for seconds; `perkey-chaos fleet` runs them for longer.
async fn fleet_of_three(scenario: Scenario, on: On, seconds: u64) {
    let ttl = Duration::from_secs(2);
    let (rate, accounts, seed) = (400, 500, 9);
    let plan = fleet::Plan { binary: None, scenario, on, workers: 3, rate, seconds, away: ttl, ttl, accounts, seed };
    let mut said = Vec::new();
    let verdict = fleet::fleet(&plan, &mut |line| said.push(line.to_owned())).await;
    let (name, on) = (scenario.word(), on.as_str());
    let size = format!("--rate {rate} --seconds {seconds} --ttl 2 --accounts {accounts} --seed {seed}");
    holds(&format!("fleet --scenario {name} --on {on} {size}"), &said, verdict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_workers_shards_go_to_others_and_nothing_is_lost() {
    fleet_of_three(Scenario::Kill, On::Kafka, 12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_worker_wakes_up_and_changes_nothing() {
    fleet_of_three(Scenario::Freeze, On::Kafka, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_counts_once() {
    fleet_of_three(Scenario::AnswerLost, On::Kafka, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_go_to_others_with_a_killed_workers_shards_and_nothing_is_lost() {
    fleet_of_three(Scenario::Kill, On::Rabbitmq, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_worker_wakes_up_beside_its_streams_next_readers_and_changes_nothing() {
    fleet_of_three(Scenario::Freeze, On::Rabbitmq, 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_alone_carries_a_fleet_whose_workers_are_killed() {
    fleet_of_three(Scenario::Kill, On::Postgres, 8).await;
}

async fn called(store: calls::StoreKind, operations: u64, kills: u32, word: &str) {
    let plan = calls::Plan { binary: None, store, operations, kills, cut: 0.3, seed: 7 };
    let mut said = Vec::new();
    let verdict = calls::calls(&plan, &mut |line| said.push(line.to_owned())).await;
    holds(&format!("calls --on {word} --operations {operations} --kills {kills} --seed 7"), &said, verdict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_through_kills_and_cuts_take_effect_once() {
    called(calls::StoreKind::Sqlite, 200, 4, "sqlite").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_to_a_fleet_through_kills_and_cuts_take_effect_once() {
    called(calls::StoreKind::Postgres, 150, 3, "postgres").await;
}
