//! Settings that are allowed and may still not be wanted.
//! In: settings. Out: findings.

use std::net::IpAddr;
use std::time::Duration;

use perkey::Settings;
use perkey::unstable::settings::{FirstStart, RabbitmqSettings, WithoutId};
use perkey::unstable::store;

use super::{Finding, error, note, or_ok, warning};
use crate::defaults;

/// The window below which repeats come too late to be dropped: of an import that is read again, of a client that tries
/// again.
const WINDOW_LEAST: Duration = Duration::from_secs(86_400);

/// Dependencies of handlers that the program's own settings do not configure.
pub(super) fn lacks(settings: &Settings) -> Vec<Finding> {
    let what_to_do = "set it where orders are paid here; else there is nothing to do";
    defaults::lacks(settings).into_iter().map(|lack| note("settings.app", lack.what, what_to_do)).collect()
}

/// All other checks.
pub(super) fn checks(settings: &Settings) -> Vec<Finding> {
    let mut all = dedup(settings);
    all.extend(retry(settings));
    all.extend(lease(settings));
    all.extend(limits(settings));
    all.extend(edges(settings));
    all.extend(rabbitmq(&settings.rabbitmq));
    all.extend(server(settings));
    all
}

fn shown(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(time)
}

fn dedup(settings: &Settings) -> Vec<Finding> {
    let (window, least) = (settings.dedup.window, settings.dedup.window_min);
    let mut found = Vec::new();
    if window < least {
        found.push(error(
            "settings.dedup",
            format!("dedup.window ({}) is below dedup.window_min ({})", shown(window), shown(least)),
            "set dedup.window above dedup.window_min: below that the alarm is raised for good",
        ));
    } else if window < WINDOW_LEAST {
        found.push(warning(
            "settings.dedup",
            format!("ids are remembered for {} only (dedup.window)", shown(window)),
            "set dedup.window to a day or more: an import that is read again, or a sender that tries again, later than \
             that takes effect twice",
        ));
    }
    or_ok("settings.dedup", found, format!("ids are remembered for {}", shown(window)))
}

/// The longest time that a message can take through all its attempts.
fn longest(settings: &Settings) -> Duration {
    let retry = &settings.retry;
    let cap = retry.cap.as_secs_f64();
    let mut bound = retry.base.as_secs_f64();
    let mut sum = 0.0;
    let mut left = retry.attempts.saturating_sub(1);
    while left > 0 && bound < cap {
        sum += bound;
        bound *= retry.factor;
        left -= 1;
        if retry.factor <= 1.0 {
            sum += bound * f64::from(left);
            left = 0;
        }
    }
    Duration::try_from_secs_f64(sum + cap * f64::from(left)).unwrap_or(Duration::MAX)
}

fn retry(settings: &Settings) -> Vec<Finding> {
    let (longest, give_up) = (longest(settings), settings.retry.give_up_after);
    let mut found = Vec::new();
    if longest > give_up {
        found.push(warning(
            "settings.retry",
            format!(
                "{} attempts can take {}, which is longer than retry.give_up_after ({})",
                settings.retry.attempts,
                shown(Duration::from_secs(longest.as_secs())),
                shown(give_up)
            ),
            "lower retry.attempts or retry.cap, or raise retry.give_up_after: a message that is deferred in between is \
             given up before its attempts are spent",
        ));
    }
    if settings.history.keep < give_up {
        found.push(warning(
            "settings.history",
            format!(
                "history.keep ({}) is below retry.give_up_after ({})",
                shown(settings.history.keep),
                shown(give_up)
            ),
            "set history.keep above retry.give_up_after: explain cannot tell what happened first to a message that \
             still waits",
        ));
    }
    or_ok("settings.retry", found, format!("all attempts end within {}", shown(Duration::from_secs(longest.as_secs()))))
}

fn lease(settings: &Settings) -> Vec<Finding> {
    if !store::is_shared(settings) {
        return Vec::new();
    }
    let (ttl, statement) = (settings.ownership.lease_ttl, settings.store.statement_timeout);
    let mut found = Vec::new();
    if statement >= ttl * 2 / 3 {
        found.push(warning(
            "settings.lease",
            format!(
                "store.statement_timeout ({}) is not below two thirds of ownership.lease_ttl ({})",
                shown(statement),
                shown(ttl)
            ),
            "lower store.statement_timeout: a worker stops its shards after two thirds of a lease, with a statement \
             still under way",
        ));
    }
    or_ok("settings.lease", found, format!("a lease lasts {}, a statement at most {}", shown(ttl), shown(statement)))
}

fn limits(settings: &Settings) -> Vec<Finding> {
    let mut found = Vec::new();
    if settings.limits.turn_bytes_max > settings.commit.bytes_max {
        found.push(note(
            "settings.limits",
            format!(
                "a turn may write {} bytes (limits.turn_bytes_max), a commit has {} (commit.bytes_max)",
                settings.limits.turn_bytes_max, settings.commit.bytes_max
            ),
            "lower limits.turn_bytes_max, or raise commit.bytes_max: such a turn gets its own commit",
        ));
    }
    if settings.limits.turn_bytes_max < settings.ingress.message_bytes_max {
        found.push(note(
            "settings.limits",
            format!(
                "a message may have {} bytes (ingress.message_bytes_max), what a turn sends out {} \
                 (limits.turn_bytes_max)",
                settings.ingress.message_bytes_max, settings.limits.turn_bytes_max
            ),
            "raise limits.turn_bytes_max if handlers pass their messages on: the largest messages are rejected",
        ));
    }
    or_ok("settings.limits", found, "the bounds of messages, turns and commits fit each other")
}

fn edges(settings: &Settings) -> Vec<Finding> {
    let mut found = Vec::new();
    let listen = &settings.admin.listen;
    let local = ["127.", "localhost", "[::1]"].iter().any(|start| listen.starts_with(start));
    if !local && !listen.is_empty() {
        found.push(note(
            "settings.admin",
            format!("metrics and health are served on {listen} to everybody who reaches it"),
            "let only your own network reach it: it asks for no password",
        ));
    }
    let kafka = &settings.kafka;
    if kafka.security == "sasl_plaintext" {
        found.push(warning(
            "settings.kafka",
            "kafka.security is sasl_plaintext: the brokers are not authenticated and all can be read on the way",
            "use sasl_ssl",
        ));
    }
    if kafka.first_start == FirstStart::Latest && !kafka.topics.is_empty() {
        found.push(note(
            "settings.kafka",
            "a topic that was never read is begun at its end (kafka.first_start = \"latest\")",
            "set it to \"earliest\" unless what is in the topics already is to be passed over",
        ));
    }
    found
}

/// Checks that the store's server is authenticated.
fn server(settings: &Settings) -> Option<Finding> {
    let (host, mode) = store::unproven(settings)?;
    let found = format!("PostgreSQL at {host} need not prove who it is (sslmode={mode})");
    let advice = "add ?sslmode=verify-full&sslrootcert=FILE to store.url, unless the network on the way is trusted: less \
                  than verify-ca takes any certificate, or none";
    Some(warning("settings.store", found, advice))
}

fn rabbitmq(rabbitmq: &RabbitmqSettings) -> Vec<Finding> {
    const CHECK: &str = "settings.rabbitmq";
    let mut found = Vec::new();
    if !rabbitmq.tls && !is_local(&rabbitmq.addresses) {
        found.push(note(
            CHECK,
            "rabbitmq.tls is false: the password and all messages can be read on the way, and no node proves who it is",
            "use TLS, unless the network on the way is trusted",
        ));
    }
    if (rabbitmq.username.as_str(), rabbitmq.password.as_str()) == ("guest", "guest") && !is_local(&rabbitmq.addresses)
    {
        found.push(warning(
            CHECK,
            "RabbitMQ on another machine is asked as guest with the password that everybody knows",
            "make a user with the rights in docs/rabbitmq.md; as it comes, RabbitMQ lets guest in from its own machine \
             alone",
        ));
    }
    if rabbitmq.without_id == WithoutId::Mint && !rabbitmq.intakes.is_empty() {
        found.push(note(
            CHECK,
            "a message of an intake that has no id is given one (rabbitmq.without_id = \"mint\")",
            "have publishers set message_id: without it a repeat, theirs or the intake's, takes effect again",
        ));
    }
    found
}

/// Returns whether only this machine is named: `host:port,host:port`, an IPv6 address in brackets.
fn is_local(addresses: &str) -> bool {
    addresses.split(',').filter(|address| !address.trim().is_empty()).all(|address| {
        let address = address.trim();
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn levels(settings: &Settings, check: &str) -> Vec<Level> {
        checks(settings).into_iter().filter(|found| found.check == check).map(|found| found.level).collect()
    }

    #[test]
    fn the_defaults_are_sound() {
        let found = checks(&Settings::default());
        assert!(found.iter().all(|found| found.level == Level::Ok), "{found:?}");
        let mut shared = Settings::default();
        shared.store.url = "postgres://h/d".to_owned();
        assert_eq!(levels(&shared, "settings.lease"), [Level::Ok]);
    }

    #[test]
    fn windows_that_are_too_short_are_told() {
        let mut settings = Settings::default();
        settings.dedup.window = Duration::from_secs(3_600);
        assert_eq!(levels(&settings, "settings.dedup"), [Level::Warning]);
        settings.dedup.window = Duration::from_secs(60);
        assert_eq!(levels(&settings, "settings.dedup"), [Level::Error]);
        settings.history.keep = Duration::from_secs(60);
        assert_eq!(levels(&settings, "settings.history"), [Level::Warning]);
        settings.store.url = "postgres://h/d".to_owned();
        settings.store.statement_timeout = Duration::from_secs(7);
        assert_eq!(levels(&settings, "settings.lease"), [Level::Warning]);
    }

    #[test]
    fn attempts_that_outlast_the_giving_up_are_told() {
        let mut settings = Settings::default();
        // 0.25, 0.75, 2.25, 6.75, 20.25, 30
        assert_eq!(longest(&settings), Duration::from_secs_f64(60.25));
        settings.retry.attempts = u32::MAX;
        assert_eq!(levels(&settings, "settings.retry"), [Level::Warning]);
        settings.retry.factor = 1.0;
        assert!(longest(&settings) > Duration::from_secs(1_000_000));
        settings.retry.attempts = 1;
        assert_eq!(longest(&settings), Duration::ZERO);
    }

    #[test]
    fn bounds_that_do_not_fit_and_open_doors_are_told() {
        let mut settings = Settings::default();
        settings.limits.turn_bytes_max = 32 << 20;
        assert_eq!(levels(&settings, "settings.limits"), [Level::Note]);
        settings.limits.turn_bytes_max = 1 << 10;
        assert_eq!(levels(&settings, "settings.limits"), [Level::Note]);
        settings.admin.listen = "0.0.0.0:8082".to_owned();
        assert_eq!(levels(&settings, "settings.admin"), [Level::Note]);
        settings.kafka.security = "sasl_plaintext".to_owned();
        settings.kafka.first_start = FirstStart::Latest;
        settings.kafka.topics = vec!["orders".to_owned()];
        assert_eq!(levels(&settings, "settings.kafka"), [Level::Warning, Level::Note]);
    }

    #[test]
    fn a_database_elsewhere_that_is_not_verified_is_told() {
        let mut settings = Settings::default();
        for (url, told) in [
            ("sqlite://x.db", &[][..]),
            ("postgres://u@localhost/d", &[]),
            ("postgres://u@db/d?sslmode=verify-full", &[]),
            ("postgres://u@db/d", &[Level::Warning]),
            ("postgres://u@db/d?sslmode=require", &[Level::Warning]),
        ] {
            url.clone_into(&mut settings.store.url);
            assert_eq!(levels(&settings, "settings.store"), told, "{url}");
        }
    }

    #[test]
    fn doors_to_rabbitmq_that_stand_open_are_told() {
        let mut settings = Settings::default();
        for near in ["localhost:5672", "127.0.0.1:5672, [::1]:5672", ""] {
            near.clone_into(&mut settings.rabbitmq.addresses);
            assert_eq!(levels(&settings, "settings.rabbitmq"), [], "{near}");
        }
        settings.rabbitmq.addresses = "localhost:5672,rabbit-2:5672".to_owned();
        assert_eq!(levels(&settings, "settings.rabbitmq"), [Level::Note, Level::Warning]);
        settings.rabbitmq.tls = true;
        assert_eq!(levels(&settings, "settings.rabbitmq"), [Level::Warning]);
        settings.rabbitmq.password = "of its own".to_owned();
        assert_eq!(levels(&settings, "settings.rabbitmq"), []);
        settings.rabbitmq.without_id = WithoutId::Mint;
        assert_eq!(levels(&settings, "settings.rabbitmq"), []);
        settings.rabbitmq.intakes = vec!["orders".to_owned()];
        assert_eq!(levels(&settings, "settings.rabbitmq"), [Level::Note]);
    }
}
