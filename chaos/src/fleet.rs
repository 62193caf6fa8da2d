//! A fleet of real workers on real servers under a steady load, while workers, lines and servers fail.
//! In: a scenario and a seed. Out: a report of the run, takeover times, and the violations.

mod beside;
pub mod carrier;
pub mod faults;
mod figures;
pub mod judge;
pub mod load;
pub mod meter;
pub mod record;
mod scene;
pub mod servers;
pub mod streams;
pub mod topics;
pub mod workers;

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{RangedU64ValueParser, TypedValueParser};
use clap::{Args, value_parser};
use perkey::unstable::clock::Dice;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::process::binary;
use crate::{ChaosError, Verdict};
use carrier::Carrier;
use faults::{On, Scenario};
use scene::Scene;
use servers::Servers;
use workers::Common;

/// The options of the run.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// The binary; if not given, it is built beside this one.
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// The scenario of the run.
    #[arg(long, value_enum)]
    pub scenario: Scenario,
    /// The carrier of the messages.
    #[arg(long, value_enum, default_value_t = On::Kafka)]
    pub on: On,
    /// The number of workers.
    #[arg(long, default_value_t = 3, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub workers: usize,
    /// Records a second; 0 means as many as the fleet handles.
    #[arg(long, default_value_t = 2_000)]
    pub rate: u64,
    /// The seconds for which the fleet is disturbed.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// The seconds for which PostgreSQL is away, in the scenario `away`.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds(0))]
    pub away: Duration,
    /// `ownership.lease_ttl`, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds(1))]
    pub ttl: Duration,
    /// The number of accounts.
    #[arg(long, default_value_t = 5_000)]
    pub accounts: u64,
    /// The seed.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

fn seconds(least: u64) -> impl TypedValueParser<Value = Duration> {
    value_parser!(u64).range(least..).map(Duration::from_secs)
}

/// Runs `plan`; each line of the report goes to `say` as it comes.
pub async fn fleet(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<Verdict, ChaosError> {
    let Plan { scenario, on, .. } = *plan;
    if !scenario.goes_with(on) {
        return Err(ChaosError::Stuck(format!("nothing of this scenario happens --on {}", on.as_str())));
    }
    let binary = binary(plan.binary.as_deref()).await?;
    let running = Servers::running(on);
    let servers = if scenario.kills_servers() || running.is_err() { Servers::own(on).await? } else { running? };
    let suffix = format!("{:08x}", Dice::from_system().below(1 << 32));
    let database = format!("perkey_test_chaos_{suffix}");
    let carrier = Carrier::make(on, &servers, &suffix).await?;
    change(&servers.postgres, &format!("CREATE DATABASE {database}")).await?;
    let folder = tempfile::tempdir()?;
    let common = Common {
        binary,
        folder: folder.path().to_owned(),
        database: database.clone(),
        carrier: carrier.clone(),
        ttl: plan.ttl,
    };
    let ended = match Scene::start(plan, &servers, &common).await {
        Ok(mut scene) => scene.play(say).await,
        Err(error) => Err(error),
    };
    let holds = ended.as_ref().is_ok_and(|verdict| verdict.violations.is_empty());
    if holds {
        carrier.remove().await?;
        change(&servers.postgres, &format!("DROP DATABASE {database} WITH (FORCE)")).await?;
        servers.leave().await?;
    } else {
        let kept = folder.keep();
        say(&format!("kept for a look: {}, database {database} at {}", kept.display(), servers.postgres));
    }
    ended
}

pub(crate) async fn change(postgres: &str, sql: &str) -> Result<(), ChaosError> {
    let mut connection = PgConnection::connect(postgres).await?;
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// `url` with the name of another database.
pub(crate) fn in_database(url: &str, database: &str) -> String {
    url.rsplit_once('/').map_or_else(|| url.to_owned(), |(server, _)| format!("{server}/{database}"))
}

/// The `host:port` of a PostgreSQL URL.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split('/').next().unwrap_or(rest);
    rest.rsplit_once('@').map_or(rest, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let url = "postgres://postgres@127.0.0.1:25366/postgres";
        assert_eq!(host(url), "127.0.0.1:25366");
        assert_eq!(in_database(url, "other"), "postgres://postgres@127.0.0.1:25366/other");
    }
}
