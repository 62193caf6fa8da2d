//! `doctor`: checks settings, store and brokers, and reports problems and risks with advice.
//! In: settings, a store, brokers; any of them may be away. Out: findings, worst first.

mod calls;
mod facts;
mod ids;
mod kafka;
mod rabbitmq;
mod server;
mod settings;
mod shards;

use perkey::Settings;
use perkey::unstable::settings::load::redact;
use serde::Serialize;

use self::facts::Facts;
use super::cli::output::{Out, table};
use super::cli::{Done, Ended};

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// It works, and something may go wrong.
    Warning,
    /// Something is wrong, or can lose what was committed.
    Error,
}

/// A finding of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// The name of the check; the same in every release.
    check: &'static str,
    level: Level,
    /// The observation.
    found: String,
    /// The advice.
    advice: Option<String>,
}

fn ok(check: &'static str, found: impl Into<String>) -> Finding {
    Finding { check, level: Level::Ok, found: found.into(), advice: None }
}

fn note(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { check, level: Level::Note, found: found.into(), advice: Some(advice.into()) }
}

fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { check, level: Level::Warning, found: found.into(), advice: Some(advice.into()) }
}

fn error(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { check, level: Level::Error, found: found.into(), advice: Some(advice.into()) }
}

/// The problems, or else a finding that there are none.
fn or_ok(check: &'static str, problems: Vec<Finding>, fine: impl Into<String>) -> Vec<Finding> {
    if problems.is_empty() { vec![ok(check, fine)] } else { problems }
}

#[derive(Debug, Serialize)]
struct Report {
    store: String,
    errors: usize,
    warnings: usize,
    notes: usize,
    findings: Vec<Finding>,
}

/// Runs all checks; [`Done::Unsound`] when something is wrong.
pub async fn doctor(settings: &Settings, out: Out) -> Ended {
    let facts = facts::gathered(settings).await?;
    let report = report(settings, judged(&facts));
    out.show(&report, text)?;
    Ok(if report.errors > 0 { Done::Unsound } else { Done::All })
}

fn judged(facts: &Facts) -> Vec<Finding> {
    let mut findings = settings::checks(&facts.settings);
    findings.extend(settings::lacks(&facts.settings));
    findings.extend(server::checks(facts));
    findings.extend(shards::checks(facts));
    findings.extend(calls::checks(facts));
    findings.extend(ids::checks(facts));
    findings.extend(kafka::checks(facts));
    findings.extend(rabbitmq::checks(facts));
    findings
}

fn report(settings: &Settings, mut findings: Vec<Finding>) -> Report {
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    Report {
        store: redact("store.url", &settings.store.url),
        errors: count(Level::Error),
        warnings: count(Level::Warning),
        notes: count(Level::Note),
        findings,
    }
}

fn text(report: &Report) -> String {
    let line = |finding: &Finding| {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        let advice = finding.advice.clone().unwrap_or_default();
        vec![level.to_owned(), finding.check.to_owned(), finding.found.clone(), advice]
    };
    let findings = table(&["level", "check", "found", "what to do"], report.findings.iter().map(line));
    let Report { store, errors, warnings, notes, .. } = report;
    format!("{store}\n\n{findings}\n\nerrors {errors}, warnings {warnings}, notes {notes}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_begins_with_what_is_worst() {
        let findings =
            vec![ok("a", "fine"), note("b", "so", "look"), error("c", "bad", "mend"), warning("d", "x", "y")];
        let report = report(&Settings::default(), findings);
        let checks: Vec<_> = report.findings.iter().map(|finding| finding.check).collect();
        assert_eq!((checks, report.errors, report.warnings, report.notes), (vec!["c", "d", "b", "a"], 1, 1, 1));
        let text = text(&report);
        assert!(text.contains("error    c      bad") && text.ends_with("errors 1, warnings 1, notes 1"), "{text}");
    }
}
