//! The address of a PostgreSQL store, and the options of each kind of connection.
//! In: `store.url` and bounds. Out: options of the driver, or what is wrong with the URL.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::store::StoreError;

/// A commit waits for a lock for the statement timeout divided by this, so that a failure to get the lock is told from
/// a statement that takes too long.
const LOCK_SHARE: u32 = 5;

/// The purposes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Commits: their plans never depend on how large a table happened to be when they were made.
    Commits,
    /// Takeovers, and writes of tools.
    Control,
    /// Signs of life.
    Leases,
    /// Reading: planned each time, for the tables as they are by then. A plan that was made while a table was empty is
    /// kept until the table is analysed, and reads all of it: all indexes cost the same then, so that it uses any one.
    Queries,
    /// Looking again and again for rows that were appended or emitted: in tables with one index, so that the plan is
    /// known.
    Log,
    /// Notifying other processes, and being notified by them.
    Notices,
    /// Setting the store up: this may wait for another process that does so, and take long.
    Prepare,
    /// Looking at the server as any program does: the session starts without options of ours.
    Look,
}

impl Use {
    fn as_str(self) -> &'static str {
        match self {
            Self::Commits => "commits",
            Self::Control => "control",
            Self::Leases => "leases",
            Self::Queries => "queries",
            Self::Log => "log",
            Self::Notices => "notices",
            Self::Prepare => "prepare",
            Self::Look => "look",
        }
    }
}

/// The place that a URL names.
#[derive(Clone, Debug)]
pub(super) struct PgPlace {
    options: PgConnectOptions,
    statement_timeout: Duration,
    /// True if a pooler stands between: then statements are not kept, settings not sent, and notifications not
    /// received.
    pub(super) pooled: bool,
}

impl PgPlace {
    pub(super) fn of(url: &str, statement_timeout: Duration) -> Result<Self, StoreError> {
        if !names(url) {
            let scheme = url.split(':').next().unwrap_or("");
            let wanted = "postgres://user:password@host:5432/database";
            return Err(StoreError::Url(format!("has the scheme {scheme:?}; this store is {wanted}")));
        }
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| StoreError::Url(format!("cannot be read as postgres://user@host/database: {error}")))?;
        let query = url.split_once('?').map_or("", |(_, query)| query);
        let pooled = query.split('&').any(|pair| pair == "statement-cache-capacity=0");
        Ok(Self { options: options.disable_statement_logging(), statement_timeout, pooled })
    }

    /// Options of a connection for `purpose`.
    pub(super) fn options(&self, purpose: Use) -> PgConnectOptions {
        let name = match self.options.get_application_name() {
            Some(theirs) => format!("{theirs} {}", purpose.as_str()),
            None => format!("perkey {}", purpose.as_str()),
        };
        let options = self.options.clone().application_name(&name);
        if self.pooled || purpose == Use::Look {
            return options;
        }
        let bound = if purpose == Use::Prepare { 0 } else { self.statement_timeout.as_millis() };
        let options = options.options([
            ("statement_timeout", bound.to_string().as_str()),
            ("idle_in_transaction_session_timeout", "10000"),
            ("default_transaction_isolation", "read committed"),
            ("tcp_keepalives_idle", "5"),
            ("tcp_keepalives_interval", "2"),
            ("tcp_keepalives_count", "3"),
        ]);
        let options = match purpose {
            Use::Commits => {
                options.options([("lock_timeout", (self.statement_timeout / LOCK_SHARE).as_millis().to_string())])
            }
            _ => options,
        };
        match purpose {
            Use::Commits | Use::Log => options.options([
                ("plan_cache_mode", "force_generic_plan"),
                ("enable_seqscan", "off"),
                ("enable_hashjoin", "off"),
                ("enable_mergejoin", "off"),
            ]),
            Use::Queries => options.options([("plan_cache_mode", "force_custom_plan")]),
            Use::Control | Use::Leases | Use::Notices | Use::Prepare | Use::Look => options,
        }
    }

    /// The host and the `sslmode`, if the server is on another machine and need not prove its identity.
    pub(super) fn unproven(&self) -> Option<(&str, &'static str)> {
        let mode = match self.options.get_ssl_mode() {
            PgSslMode::Disable => "disable",
            PgSslMode::Allow => "allow",
            PgSslMode::Prefer => "prefer",
            PgSslMode::Require => "require",
            PgSslMode::VerifyCa => "verify-ca",
            PgSslMode::VerifyFull => return None,
        };
        let host = self.options.get_host();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let is_near =
            host == "localhost" || host.starts_with('/') || address.is_ok_and(|address| address.is_loopback());
        (!is_near).then_some((host, mode))
    }

    /// The time for which an answer is waited for: a little longer than the server works on it.
    pub(super) fn patience(&self) -> Duration {
        self.statement_timeout + Duration::from_secs(1)
    }
}

/// True if `url` is one of a PostgreSQL store.
pub(super) fn names(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_travel_with_the_connection_unless_a_pooler_would_refuse_them() {
        let place = |url| PgPlace::of(url, Duration::from_secs(5)).unwrap();
        let direct = place("postgres://u:secret@h:1/d");
        let options = direct.options(Use::Commits);
        assert!(options.get_options().unwrap().contains("-c statement_timeout=5000"), "{:?}", options.get_options());
        assert!(options.get_options().unwrap().contains("force_generic_plan"));
        assert!(options.get_options().unwrap().contains("-c lock_timeout=1000"));
        assert!(!direct.options(Use::Log).get_options().unwrap().contains("lock_timeout"));
        assert!(direct.options(Use::Queries).get_options().unwrap().contains("force_custom_plan"));
        assert!(direct.options(Use::Prepare).get_options().unwrap().contains("-c statement_timeout=0"));
        assert_eq!(options.get_application_name(), Some("perkey commits"));
        let pooled = place("postgres://u@h/d?statement-cache-capacity=0");
        assert!(pooled.pooled && pooled.options(Use::Commits).get_options().is_none());
    }

    #[test]
    fn a_server_elsewhere_is_to_prove_who_it_is() {
        let told = |url: &str| PgPlace::of(url, Duration::from_secs(5)).unwrap().unproven().map(|(_, mode)| mode);
        for near in
            ["postgres://u@127.0.0.1/d", "postgres://u@localhost/d", "postgres://u@[::1]/d", "postgres:///d?host=/run"]
        {
            assert_eq!(told(near), None, "{near}");
        }
        assert_eq!(told("postgres://u@db/d"), Some("prefer"));
        for mode in ["disable", "allow", "prefer", "require", "verify-ca"] {
            assert_eq!(told(&format!("postgres://u@10.0.0.1/d?sslmode={mode}")), Some(mode));
        }
        assert_eq!(told("postgres://u@db/d?sslmode=verify-full"), None);
    }

    #[test]
    fn a_wrong_url_says_so_without_its_password() {
        for url in ["mysql://u:secret@h/d", "postgres://u:secret@h:port/d"] {
            let error = PgPlace::of(url, Duration::from_secs(5)).unwrap_err().to_string();
            assert!(error.contains("postgres://") && !error.contains("secret"), "{error}");
        }
    }
}
