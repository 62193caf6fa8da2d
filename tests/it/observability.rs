//! The alert rules as Prometheus itself understands them, and the commands that runbooks and alerts name.
//! In: the files of `config/prometheus`, `promtool`, the real binary. Out: rules that fire when they should, commands that exist.

use std::collections::BTreeSet;
use std::process::Command;

use crate::cli::Cli;
use crate::servers;
use crate::tidy::alerts;
use crate::tidy::scan::root;

/// Runs promtool in the folder of the rules; the test fails with what it said.
#[track_caller]
fn promtool(args: &[&str]) -> String {
    let run = Command::new(servers::promtool()).args(args).current_dir(root().join("config/prometheus")).output();
    let run = run.unwrap();
    let said = [run.stdout, run.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
    assert!(run.status.success(), "promtool {args:?}: {said}");
    said
}

#[test]
fn prometheus_understands_the_rules_and_the_settings() {
    let said = promtool(&["check", "rules", "rules.yml"]);
    // Each of them is one that the tidy tests see, too.
    let seen = alerts::rules().len();
    assert!(said.contains(&format!("SUCCESS: {seen} rules found")), "{seen} seen here: {said}");
    promtool(&["check", "config", "prometheus.yml"]);
}

#[test]
fn pages_fire_when_they_should_and_not_otherwise() {
    promtool(&["test", "rules", "rules.test.yml"]);
}

#[test]
fn alerts_over_days_fire_when_they_should_and_not_otherwise() {
    promtool(&["test", "rules", "rules.days.test.yml"]);
}

#[test]
fn every_page_has_its_tests() {
    let tests = std::fs::read_to_string(root().join("config/prometheus/rules.test.yml")).unwrap();
    let untested = |page: &&alerts::Rule| {
        let (words, after) = (format!("alertname: {}\n", page.name), format!("\"{}\"}}'", page.name));
        !tests.contains(&words) || !tests.contains(&after)
    };
    let rules = alerts::rules();
    let pages: Vec<_> = rules.iter().filter(|rule| rule.severity == "page").collect();
    let untested: Vec<_> = pages.iter().copied().filter(untested).map(|page| &page.name).collect();
    assert!(pages.len() >= 10 && untested.is_empty(), "of {} pages no test makes {untested:?} fire", pages.len());
}

/// The commands of a text: what stands in back quotes or a block after the program's name, with its flags.
fn commands(text: &str) -> BTreeSet<(Vec<String>, Vec<String>)> {
    let named = text.split("budget-manager ").skip(1).map(|rest| rest.split(['`', '\n', '|', ';']).next().unwrap());
    let parts = named.map(|command| {
        let words: Vec<&str> = command.split_whitespace().collect();
        let plain = |word: &&&str| word.starts_with(|c: char| c.is_ascii_lowercase());
        // `dlq:peek` is one word, `config check` two: what follows the first is a value where it has a colon.
        let most = if words.first().is_some_and(|word| word.contains(':')) { 1 } else { 2 };
        let verb = words.iter().take(most).take_while(plain).map(|word| (*word).to_owned()).collect();
        let flags = words.iter().filter(|word| word.starts_with("--")).map(|word| (*word).to_owned()).collect();
        (verb, flags)
    });
    parts.collect()
}

#[test]
fn commands_are_found_in_text() {
    let text = "`budget-manager dlq:peek --service S` or\n    budget-manager config check\n`budget-manager explain ID`";
    let found: Vec<String> = commands(text).iter().map(|(verb, flags)| format!("{verb:?} {flags:?}")).collect();
    assert_eq!(found, ["[\"config\", \"check\"] []", "[\"dlq:peek\"] [\"--service\"]", "[\"explain\"] []"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_runbooks_and_alerts_exist() {
    let cli = Cli::new().await;
    let rules = alerts::rules().into_iter().map(|rule| rule.look);
    let texts = alerts::runbooks().into_iter().map(|(_, text)| text).chain(rules);
    let commands: BTreeSet<_> = texts.flat_map(|text| commands(&text)).collect();
    assert!(commands.len() > 10, "the runbooks name too few commands to be believed: {commands:?}");
    let mut unknown = Vec::new();
    for (verb, flags) in &commands {
        let mut args: Vec<&str> = verb.iter().map(String::as_str).collect();
        args.push("--help");
        let help = cli.run(&args).await;
        let known = |flag: &String| help.out.split_whitespace().any(|word| word == flag);
        if help.code != Some(0) || !flags.iter().all(known) {
            unknown.push((verb, flags));
        }
    }
    assert!(unknown.is_empty(), "no such command or flag: {unknown:?}");
}
