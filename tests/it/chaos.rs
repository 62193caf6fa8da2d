//! The scenarios of `perkey-chaos`, each with a seed and small enough for every run of the tests.
//! In: the real binary, or an engine in this process. Out: nothing lost, nothing counted twice.

use perkey::metrics::Child;
use perkey_chaos::kill::{self, Mode};
use perkey_chaos::{ChaosError, Verdict, children, flood, process};

fn holds(again: &str, said: &[String], verdict: Result<Verdict, ChaosError>) {
    let again = format!("again: cargo run -p perkey-chaos -- {again}");
    let said = said.join("\n");
    let violations = verdict.map_or_else(|error| vec![error.to_string()], |verdict| verdict.violations);
    assert!(violations.is_empty(), "\n{said}\n{}\n{again}", violations.join("\n"));
}

async fn killed(mode: Mode, word: &str) {
    let binary = tokio::task::spawn_blocking(process::built).await.unwrap().unwrap();
    let plan = kill::Plan { binary, mode, kills: 8, lines: 20_000, accounts: 2_000, seed: 8 };
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
