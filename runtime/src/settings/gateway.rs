//! The front doors, and the cache of answers behind them.
//! In: the sections `[gateway]` and `[cache]`. Out: plain values, or problems.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::problems::Problems;
use super::{Settings, address};

section! {
    /// The front doors: REST and GraphQL on one listener, gRPC on another.
    GatewaySettings {
        /// Address of REST and GraphQL.
        listen: String = "127.0.0.1:8080".to_owned(),
        /// Address of gRPC.
        grpc_listen: String = "127.0.0.1:8081".to_owned(),
        /// File with the bearer tokens' hashes (`budget-manager token:new`). Without one only loopback is served, as
        /// tenant `default`.
        tokens: String = String::new(),
        /// Without tokens, allows changes from pages that this machine serves at other ports.
        local_origins: bool = true,
        /// Certificate chain (PEM) of both listeners; with `tls_key`. Without it they speak plain text.
        tls_cert: String = String::new(),
        /// Its private key (PEM).
        tls_key: String = String::new(),
        /// Time for which a call is awaited before its sender is told that it still runs.
        #[serde(with = "humantime_serde")]
        wait: Duration = Duration::from_secs(10),
        /// Time for which an answer is kept under its idempotency key, and an older one may be asked for again.
        #[serde(with = "humantime_serde")]
        keep: Duration = Duration::from_secs(24 * 3600),
        /// Operations that are refused without an idempotency key of the client's own; other operations are given one.
        require_key: Vec<String> = vec!["payments.charge".to_owned()],
        /// Accepts a key as a plain token (`abc`) as well as a quoted string (`"abc"`).
        lenient_keys: bool = true,
        /// Largest body of a request, in bytes.
        body_bytes_max: usize = 1 << 20,
        /// Most bytes of stored data in an answer: a page with more of them ends before its limit, and says where
        /// the next one begins.
        answer_bytes_max: usize = 1 << 20,
        /// Records of calls that one tenant may have: its rate times `keep`.
        keys_max: u64 = 100_000_000,
        /// Requests a second of one tenant, for each process; 0: no bound.
        rate: f64 = 0.0,
        /// Connections at once, on each listener.
        connections_max: usize = 1_024,
        /// Time for a client to send a request's head, and then its body.
        #[serde(with = "humantime_serde")]
        read_timeout: Duration = Duration::from_secs(10),
    }
}

section! {
    /// The cache of answers: it makes repeats faster, and is never believed where the store says otherwise.
    CacheSettings {
        /// Redis (`redis://host:port`), which the gateways of a fleet share; empty: each process has its own.
        url: String = String::new(),
        /// Answers in the process's own cache.
        entries_max: u64 = 100_000,
        /// Largest answer that is cached, in bytes.
        entry_bytes_max: usize = 16 << 10,
        /// Time for Redis to answer before the store is asked instead.
        #[serde(with = "humantime_serde")]
        timeout: Duration = Duration::from_millis(50),
    }
}

pub(super) fn check(settings: &Settings, found: &mut Problems) {
    let (gateway, cache) = (&settings.gateway, &settings.cache);
    for (setting, listen) in [
        ("gateway.listen", &gateway.listen),
        ("gateway.grpc_listen", &gateway.grpc_listen),
        ("admin.listen", &settings.admin.listen),
    ] {
        let none = listen.is_empty() && setting != "admin.listen";
        if !none && address(listen).is_none() {
            let or = if setting == "admin.listen" { "" } else { ", or empty for none" };
            found.check(false, &[setting], &format!("must be HOST:PORT, such as 127.0.0.1:8080{or}, not {listen:?}"));
        }
        let outside = listen.parse().is_ok_and(|address: SocketAddr| !address.ip().is_loopback());
        if outside && gateway.tokens.is_empty() && setting != "admin.listen" {
            let text = format!(
                "{setting}: {listen} can be reached from outside, and no tokens are asked for: name a file with \
                 gateway.tokens (`budget-manager token:new` writes it), or listen on 127.0.0.1"
            );
            found.add(&[setting, "gateway.tokens"], text);
        }
    }
    found.check(
        gateway.tls_cert.is_empty() == gateway.tls_key.is_empty(),
        &["gateway.tls_cert", "gateway.tls_key"],
        "and gateway.tls_key go together",
    );
    found.check(!gateway.wait.is_zero(), &["gateway.wait"], "must be above 0");
    found.check(gateway.keep >= gateway.wait, &["gateway.keep", "gateway.wait"], "must be at least gateway.wait");
    found.check(gateway.body_bytes_max > 0, &["gateway.body_bytes_max"], "must be above 0");
    found.check(gateway.answer_bytes_max > 0, &["gateway.answer_bytes_max"], "must be above 0");
    found.check(gateway.connections_max > 0, &["gateway.connections_max"], "must be above 0");
    found.check(gateway.keys_max > 0, &["gateway.keys_max"], "must be above 0");
    found.check(gateway.rate.is_finite() && gateway.rate >= 0.0, &["gateway.rate"], "must be 0 or more");
    found.check(!gateway.read_timeout.is_zero(), &["gateway.read_timeout"], "must be above 0");
    let url = &cache.url;
    found.check(
        url.is_empty() || is_redis(url),
        &["cache.url"],
        "must be redis://host:port, rediss://host:port for TLS, or empty",
    );
    found.check(!cache.timeout.is_zero(), &["cache.timeout"], "must be above 0");
}

/// Returns whether a URL has a scheme of Redis.
pub(crate) fn is_redis(url: &str) -> bool {
    url.starts_with("redis://") || url.starts_with("rediss://")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_before_they_are_listened_on() {
        let with = |listen: &str| {
            let mut settings = Settings::default();
            settings.gateway.listen = listen.to_owned();
            settings.admin.listen = listen.to_owned();
            settings.problems()
        };
        assert_eq!(Settings::default().problems(), Vec::<String>::new());
        assert_eq!(with("localhost:0"), Vec::<String>::new());
        for bad in ["8080", ":8080", "localhost:70000"] {
            let problems = with(bad).join("\n");
            assert!(
                problems.contains("gateway.listen must be HOST:PORT") && problems.contains("admin.listen"),
                "{problems}"
            );
        }
        let (none, outside) = (with("").join("\n"), with("0.0.0.0:80").join("\n"));
        assert!(none.contains("admin.listen") && !none.contains("gateway.listen"), "{none}");
        assert!(outside.contains("gateway.tokens") && !outside.contains("admin.listen"), "{outside}");
    }
}
