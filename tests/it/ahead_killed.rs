//! Work done above a held position is not done again when its process is killed, with the bounds of a new installation.
//! In: the real binary, a paused key with more messages than may wait, others between and behind them. Out: one effect
//! of each.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use perkey::unstable::message::shard_of;
use perkey_chaos::process::until;
use serde_json::Value;

use crate::contract::{Kind, Scene};

const SOON: Duration = Duration::from_secs(120);
/// Shards of a new installation.
const SHARDS: u32 = 8;
/// `pending.max_per_key` by default, and some that stay in the log below everything that follows.
const SLOW: u64 = 10_000 + 40;

/// Messages of each other account between and behind those of the paused one. With 200,000 they are more than
/// `dedup.max_ids` has room for by default (`PERKEY_OTHERS`, in a release build); the check's few are more than the
/// bound it sets.
fn others() -> u64 {
    std::env::var("PERKEY_OTHERS").map_or(1_500, |others| others.parse().unwrap())
}

/// Accounts of one shard: the paused one, and three others.
fn accounts() -> Vec<String> {
    let mut names = (0..).map(|n| format!("acct-{n}"));
    let slow = names.next().unwrap();
    let shard = shard_of(&slow, SHARDS);
    let near = names.filter(|name| shard_of(name, SHARDS) == shard).take(3).collect();
    [vec![slow], near].concat()
}

/// Lines of an import: `each` of every account, in turn; each account's from `first` on.
fn lines(each: &[(&str, u64)], first: u64) -> String {
    let mut text = String::from("id,account,amount,currency,at\n");
    let most = each.iter().map(|(_, count)| *count).max().unwrap_or_default();
    for n in 0..most {
        for (account, _) in each.iter().filter(|(_, count)| n < *count) {
            writeln!(text, "{account}-{},{account},1,EUR,2026-01-31", first + n).unwrap();
        }
    }
    text
}

struct Accounts<'a>(&'a Scene);

impl Accounts<'_> {
    async fn postings(&self, account: &str) -> u64 {
        let answer = reqwest::get(format!("{}/api/accounts/{account}", self.0.http)).await.unwrap();
        let account: Value = answer.json().await.unwrap();
        account["n"].as_u64().unwrap_or_default()
    }

    /// All of these have so many postings, and none has more.
    async fn have(&self, wanted: &BTreeMap<&str, u64>) {
        for (account, count) in wanted {
            let mut last = 0;
            let there = async || {
                last = self.postings(account).await;
                last >= *count
            };
            let waited = until("all are posted", SOON, there).await;
            assert!(waited.is_ok(), "{last} of {count} postings of {account}");
            assert_eq!(last, *count, "postings of {account} repeat");
        }
    }
}

async fn killed(kind: Kind) {
    let few = ["dedup.max_ids=3000"];
    let sets: &[&str] = if std::env::var_os("PERKEY_OTHERS").is_some() { &[] } else { &few };
    let mut scene = Scene::new(kind, sets).await;
    let (accounts, others) = (accounts(), others());
    let accounts: Vec<_> = accounts.iter().map(String::as_str).collect();
    let (slow, near) = (accounts[0], &accounts[1..]);
    let import = async |scene: &Scene, name: &str, text: String| {
        scene.cli.file(name, text);
        scene.cli.json(&["import", "--service", "transactions", name]).await.ends(0);
    };
    let key = ["--service", "transactions", "--key", slow, "--why", "test"];
    assert_eq!(scene.cli.run(&[&["key:pause"][..], &key].concat()).await.code, Some(0));
    let each: Vec<_> =
        accounts.iter().map(|account| (*account, if *account == slow { SLOW } else { others })).collect();
    import(&scene, "first.csv", lines(&each, 0)).await;
    let mut wanted: BTreeMap<_, _> = near.iter().map(|account| (*account, others)).collect();
    Accounts(&scene).have(&wanted).await;
    // As many as may wait do so, the others hold the log's position where they are.
    let waiting = async || scene.count("SELECT count(*) FROM pending").await == 10_000;
    until("the bound is reached", SOON, waiting).await.unwrap();

    for round in 1..=2 {
        scene.crash().await;
        let more: Vec<_> = near.iter().map(|account| (*account, 10)).collect();
        import(&scene, &format!("more-{round}.csv"), lines(&more, others * 10 * round)).await;
        wanted.values_mut().for_each(|count| *count += 10);
        Accounts(&scene).have(&wanted).await;
    }
    assert_eq!(scene.cli.run(&[&["key:resume"][..], &key].concat()).await.code, Some(0));
    wanted.insert(slow, SLOW);
    Accounts(&scene).have(&wanted).await;
    until("the log is read", SOON, async || scene.count("SELECT count(*) FROM pending").await == 0).await.unwrap();
    Accounts(&scene).have(&wanted).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_repeats_nothing_above_a_held_position_on_sqlite() {
    killed(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_repeats_nothing_above_a_held_position_on_postgresql() {
    killed(Kind::Postgres).await;
}
