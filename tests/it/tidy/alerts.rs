//! Alerts, metrics and runbooks fit: each alarm has a rule, each rule its runbook, each expression metrics that exist.
//! In: `config/prometheus/rules.yml`, `docs/runbooks`, `docs/metrics.md`. Out: each breach, with what to do about it.

use std::collections::BTreeSet;

use perkey::unstable::metrics::{Alarm, WorkerAlarm};

use super::scan::{is_word, project};
use super::{first_column, found, holds, read};

const RULES: &str = "config/prometheus/rules.yml";

/// Series that Prometheus itself makes of a target.
const PROMETHEUS: &[&str] = &["up"];

/// A rule: an alert, or one that records what others read.
#[derive(Default)]
pub(crate) struct Rule {
    pub(crate) name: String,
    line: usize,
    expr: String,
    runbook: String,
    /// The command that shows it.
    pub(crate) look: String,
    summary: String,
    /// Nothing for a rule that records.
    pub(crate) severity: String,
}

/// The rules of the file.
pub(crate) fn rules() -> Vec<Rule> {
    parsed(&read(RULES).text)
}

/// The runbooks: path and text.
pub(crate) fn runbooks() -> Vec<(String, String)> {
    let pages = project().into_iter().filter(|file| file.path.starts_with("docs/runbooks/"));
    pages.map(|file| (file.path, file.text)).collect()
}

fn parsed(text: &str) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut block = false;
    for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim_start().starts_with('#')) {
        let (key, value) = text.trim_start().split_once(": ").unwrap_or((text.trim(), ""));
        let value = value.trim_matches('"').to_owned();
        if let "- alert" | "- record" = key {
            rules.push(Rule { name: value, line, ..Rule::default() });
            block = false;
            continue;
        }
        let Some(rule) = rules.last_mut() else { continue };
        match key {
            "expr" => (block, rule.expr) = (value == "|", value),
            "for" | "labels" | "annotations:" => {
                block = false;
                let severity = value.strip_prefix("{severity: ").map(|rest| rest.trim_end_matches('}'));
                rule.severity = severity.map_or(std::mem::take(&mut rule.severity), str::to_owned);
            }
            "runbook" => rule.runbook = value,
            "look" => rule.look = value,
            "summary" => rule.summary = value,
            _ if block => rule.expr = format!("{}\n{text}", rule.expr),
            _ => {}
        }
    }
    rules
}

/// The words that the label `alarm` is compared with.
fn alarms(expr: &str) -> BTreeSet<String> {
    let texts = expr.split("alarm=").skip(1).filter_map(|rest| rest.trim_start_matches('~').split('"').nth(1));
    texts.flat_map(|text| text.split('|')).map(str::to_owned).collect()
}

/// The series that an expression reads: its words but for labels, durations, functions and operators.
fn series(expr: &str) -> BTreeSet<String> {
    let (mut plain, mut depth, mut text) = (String::new(), 0, false);
    for c in expr.chars() {
        text ^= c == '"';
        depth += i32::from(!text && (c == '{' || c == '[')) - i32::from(!text && (c == '}' || c == ']'));
        let seen = !text && depth == 0 && !"\"}]".contains(c);
        plain.push(if seen { c } else { ' ' });
    }
    for grouping in ["by", "without", "on", "ignoring"] {
        while let Some(at) = plain.find(&format!(" {grouping} (")) {
            let end = plain[at..].find(')').map_or(plain.len(), |end| at + end + 1);
            // What is grouped stands in brackets itself, so the function before it keeps one behind it.
            plain.replace_range(at..end, "");
        }
    }
    let mut names = BTreeSet::new();
    let part = |c: char| c == ':' || (c.is_ascii() && is_word(c as u8));
    let mut rest = plain.as_str();
    while let Some(at) = rest.find(part) {
        let end = rest[at..].find(|c| !part(c)).map_or(rest.len(), |end| at + end);
        let (word, behind) = (&rest[at..end], rest[end..].trim_start());
        let operator = ["and", "or", "unless", "offset", "bool"].contains(&word);
        if !operator && !behind.starts_with('(') && word.starts_with(|c: char| c.is_ascii_alphabetic()) {
            names.insert(word.to_owned());
        }
        rest = &rest[end..];
    }
    names
}

/// Alarms that no alert reads, and alerts on alarms that are not raised.
fn unheard(rules: &[Rule], words: &[&str]) -> Vec<String> {
    let heard: BTreeSet<String> = rules.iter().flat_map(|rule| alarms(&rule.expr)).collect();
    let unheard = words.iter().filter(|word| !heard.contains(**word));
    let unheard = unheard.map(|word| format!("{RULES}:1: no rule for the alarm {word}: write one, and its runbook"));
    let unknown = heard.iter().filter(|word| !words.contains(&word.as_str()));
    unheard.chain(unknown.map(|word| format!("{RULES}:1: no alarm is called {word}"))).collect()
}

/// Alerts that do not say all that they have to, and runbooks that none leads to.
fn lost(rules: &[Rule], runbooks: &BTreeSet<String>) -> Vec<String> {
    let mut problems = Vec::new();
    for rule in rules.iter().filter(|rule| !rule.name.contains(':')) {
        let at = format!("{RULES}:{}: {}", rule.line, rule.name);
        if !["page", "ticket"].contains(&rule.severity.as_str()) {
            problems.push(format!("{at}: its severity is neither page nor ticket"));
        }
        if rule.summary.is_empty() || !rule.look.starts_with("budget-manager ") {
            problems.push(format!("{at}: say what happened (summary) and which command shows it (look)"));
        }
        if !runbooks.contains(&rule.runbook) {
            problems.push(format!("{at}: its runbook {} is not there: write it", rule.runbook));
        }
    }
    let named: BTreeSet<_> = rules.iter().map(|rule| &rule.runbook).collect();
    let lost = runbooks.iter().filter(|path| !named.contains(path));
    problems.extend(lost.map(|path| format!("{path}:1: no rule names this runbook: remove it, or name it")));
    problems
}

/// Expressions of series that nothing shows.
fn blind(rules: &[Rule], metrics: &BTreeSet<String>) -> Vec<String> {
    let recorded: BTreeSet<_> = rules.iter().map(|rule| rule.name.as_str()).collect();
    let base = |name: &str| {
        let parts = ["_bucket", "_count", "_sum"].iter().find_map(|part| name.strip_suffix(part));
        parts.unwrap_or(name).to_owned()
    };
    let known = |name: &str| {
        metrics.contains(name)
            || metrics.contains(&base(name))
            || PROMETHEUS.contains(&name)
            || (name.contains(':') && recorded.contains(name))
    };
    let mut problems = Vec::new();
    for rule in rules {
        for name in series(&rule.expr).iter().filter(|name| !known(name)) {
            problems.push(format!("{RULES}:{}: {}: docs/metrics.md has no {name}", rule.line, rule.name));
        }
    }
    problems
}

#[test]
fn every_alarm_has_a_rule() {
    let words: Vec<&str> = Alarm::ALL.iter().map(|alarm| alarm.as_str()).collect();
    let words = [words, WorkerAlarm::ALL.iter().map(|alarm| alarm.as_str()).collect()].concat();
    holds(unheard(&rules(), &words));
}

#[test]
fn every_rule_has_its_runbook_and_every_runbook_its_rule() {
    let paths = runbooks().into_iter().map(|(path, _)| path).collect();
    holds(lost(&rules(), &paths));
}

#[test]
fn runbooks_say_all_that_they_have_to() {
    let parts = ["What users notice", "How to be sure", "Causes", "What to do", "What not to do", "It is over when"];
    let mut problems = Vec::new();
    for (path, text) in runbooks() {
        let missing = parts.iter().filter(|part| !text.contains(&format!("\n## {part}\n")));
        problems.extend(missing.map(|part| format!("{path}:1: it lacks the section {part}")));
        if text.lines().count() > 60 {
            problems.push(format!("{path}:60: it does not fit a screen: move detail to the document that it leads to"));
        }
    }
    holds(problems);
}

#[test]
fn every_rule_reads_metrics_that_exist() {
    let metrics = first_column(&read("docs/metrics.md"));
    holds(blind(&rules(), &metrics));
}

// ---- each check finds what it is for

const PLANTED: &str = r#"
groups:
  - name: a
    rules:
      - record: perkey:a
        expr: |
          max by (job) (last_over_time(a_seconds_bucket{le="x_y"}[10m]) offset 1d)
          or label_replace(perkey:b, "c_d", "1", "", "") / b_total
      # - alert: Not one
      - alert: A
        expr: perkey:a > 1 and up == 0 unless perkey_alarm{alarm=~"one|two"} == 1
        for: 2m
        labels: {severity: page}
        annotations:
          summary: "it is so"
          runbook: docs/runbooks/a.md
          look: "budget-manager status"
      - alert: B
        expr: sum without (job) (perkey_alarm{alarm="three"}) > bool 3
        labels: {severity: urgent}
        annotations:
          runbook: docs/runbooks/gone.md
"#;

#[test]
fn an_alarm_without_a_rule_is_found() {
    let starts = [&format!("{RULES}:1: no rule for the alarm four"), &format!("{RULES}:1: no alarm is called three")];
    let starts = starts.map(String::as_str);
    found(unheard(&parsed(PLANTED), &["one", "two", "four"]), &starts);
}

#[test]
fn a_rule_without_its_runbook_and_a_runbook_without_a_rule_are_found() {
    let paths = ["docs/runbooks/a.md", "docs/runbooks/b.md"].map(str::to_owned).into();
    let starts = ["its severity", "say what happened", "its runbook docs/runbooks/gone.md"];
    let starts: Vec<String> = starts.iter().map(|start| format!("{RULES}:18: B: {start}")).collect();
    let mut starts: Vec<&str> = starts.iter().map(String::as_str).collect();
    starts.push("docs/runbooks/b.md:1: ");
    found(lost(&parsed(PLANTED), &paths), &starts);
}

#[test]
fn a_metric_that_is_not_there_is_found() {
    let rules = parsed(PLANTED);
    let read: Vec<Vec<String>> = rules.iter().map(|rule| series(&rule.expr).into_iter().collect()).collect();
    assert_eq!(read[0], ["a_seconds_bucket", "b_total", "perkey:b"]);
    assert_eq!(
        (&read[1][..], &read[2][..]),
        (&["perkey:a", "perkey_alarm", "up"].map(str::to_owned)[..], &["perkey_alarm".to_owned()][..])
    );
    let metrics = ["a_seconds", "perkey_alarm"].map(str::to_owned).into();
    let starts = ["b_total", "perkey:b"].map(|name| format!("{RULES}:5: perkey:a: docs/metrics.md has no {name}"));
    found(blind(&rules, &metrics), &starts.each_ref().map(String::as_str));
}
