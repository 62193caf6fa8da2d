//! The binary `perkey-chaos`: runs one scenario.
//! In: its name, a seed, its size. Out: a report, the verdict, the command that runs it again; 1 on a violation.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use perkey_chaos::{
    ChaosError, Verdict, calls, checkouts, children, fleet, flood, kill, neighbours, provider, suspects, timers,
};

/// The exit code for wrong usage.
const USAGE: u8 = 64;

/// Breaks the program from outside, and checks that nothing was lost and nothing counted twice.
#[derive(Debug, Parser)]
#[command(name = "perkey-chaos", args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Kills the program again and again over a file of postings.
    Kill(kill::Plan),
    /// Ends the runtime's own actors under load, one after the other.
    Children(children::Plan),
    /// Kills the program under checkouts, beside a provider with faults of its own.
    Checkouts(checkouts::Plan),
    /// Has clients ask again and again at gateways that are killed and cut off.
    Calls(calls::Plan),
    /// Has a message whose handler ends the process, or kills from outside.
    Suspects(suspects::Plan),
    /// Measures the cost of a slow key, or of an unavailable dependency, for others.
    Neighbours(neighbours::Plan),
    /// Restarts an engine while many timers are due.
    Timers(timers::Plan),
    /// Runs a payment provider with faults, to try things with.
    Provider(provider::Plan),
    /// Offers ten times more messages than can be handled.
    Flood(flood::Plan),
    /// Breaks workers, lines and servers of a fleet on real servers.
    Fleet(fleet::Plan),
    /// Runs the worker of `suspects`, as a process of its own.
    #[command(hide = true, name = suspects::WORKER)]
    SuspectsWorker,
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let asked = parsed(&args);
    let (cli, again) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            // There is nobody left to tell that this cannot be written.
            error.print().ok();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return told(&format!("cannot start: {error}"), 1),
    };
    match runtime.block_on(run(cli.scenario)) {
        Ok(Some(verdict)) => report(&again, &verdict),
        Ok(None) => told("there was nothing to do", USAGE),
        Err(error) => told(&format!("the scenario did not run to its end: {error}"), 1),
    }
}

/// The scenario that the arguments name, and the command that runs it again, with its seed.
fn parsed(args: &[OsString]) -> Result<(Cli, String), clap::Error> {
    let matches = Cli::command().try_get_matches_from(args)?;
    let unsaid = matches.subcommand().and_then(|(_, flags)| seed_unsaid(flags));
    let words = args.iter().skip(1).map(|word| word.to_string_lossy().into_owned());
    let seed = unsaid.map(|seed| format!("--seed {seed}"));
    let again = ["perkey-chaos".to_owned()].into_iter().chain(words).chain(seed).collect::<Vec<_>>().join(" ");
    Ok((Cli::from_arg_matches(&matches)?, again))
}

/// The seed of a scenario that has one and was not given on the command line.
fn seed_unsaid(flags: &ArgMatches) -> Option<u64> {
    let seed = flags.try_get_one::<u64>("seed").ok().flatten()?;
    (flags.value_source("seed") == Some(ValueSource::DefaultValue)).then_some(*seed)
}

/// Runs a scenario; there is no verdict on one that only serves others.
async fn run(scenario: Scenario) -> Result<Option<Verdict>, ChaosError> {
    match scenario {
        Scenario::Kill(plan) => kill::kill(&plan, &mut say).await.map(Some),
        Scenario::Children(plan) => children::children(&plan, &mut say).await.map(Some),
        Scenario::Checkouts(plan) => checkouts::checkouts(&plan, &mut say).await.map(Some),
        Scenario::Calls(plan) => calls::calls(&plan, &mut say).await.map(Some),
        Scenario::Suspects(plan) => suspects::suspects(&plan, &mut say).await.map(Some),
        Scenario::Neighbours(plan) => neighbours::neighbours(&plan, &mut say).await.map(Some),
        Scenario::Timers(plan) => timers::timers(&plan, &mut say).await.map(Some),
        Scenario::Provider(plan) => provider::provider(&plan, &mut say).await.map(|()| None),
        Scenario::Flood(plan) => flood::flood(&plan).await.map(Some),
        Scenario::Fleet(plan) => fleet::fleet(&plan, &mut say).await.map(Some),
        Scenario::SuspectsWorker => suspects::work().await.map(|()| None),
    }
}

fn report(again: &str, verdict: &Verdict) -> ExitCode {
    let Verdict { facts, violations } = verdict;
    facts.iter().for_each(|fact| say(fact));
    violations.iter().for_each(|violation| say(&format!("VIOLATION {violation}")));
    say(if violations.is_empty() { "verdict: everything holds" } else { "verdict: it does not hold" });
    say(&format!("again: {again}"));
    ExitCode::from(u8::from(!violations.is_empty()))
}

fn say(line: &str) {
    // A closed pipe is not a reason to end.
    writeln!(std::io::stdout(), "{line}").ok();
}

fn told(text: &str, code: u8) -> ExitCode {
    writeln!(std::io::stderr(), "{text}").ok();
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<(Scenario, String), clap::Error> {
        let args: Vec<_> = ["perkey-chaos"].into_iter().chain(line.split_whitespace()).map(OsString::from).collect();
        parsed(&args).map(|(cli, again)| (cli.scenario, again))
    }

    #[test]
    fn the_flags_make_sense_to_clap() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_scenario_has_a_rate_of_its_own_and_takes_the_one_that_is_said() {
        let rate = |line: &str| match asked(line).unwrap().0 {
            Scenario::Neighbours(plan) => plan.rate,
            Scenario::Fleet(plan) => plan.rate,
            other => panic!("{other:?}"),
        };
        assert_eq!(rate("neighbours --of slow"), 500);
        assert_eq!(rate("neighbours --of slow --rate 2000"), 2_000);
        assert_eq!(rate("fleet --scenario kill"), 2_000);
        assert_eq!(rate("fleet --scenario kill --rate 0"), 0);
    }

    #[test]
    fn faults_that_are_not_said_are_the_scenarios_own() {
        let faults = |line: &str| match asked(line).unwrap().0 {
            Scenario::Checkouts(checkouts::Plan { faults, .. }) => [faults.fail, faults.hang, faults.lose],
            Scenario::Provider(provider::Plan { faults, .. }) => [faults.fail, faults.hang, faults.lose],
            other => panic!("{other:?}"),
        };
        assert_eq!(faults("checkouts"), [0.1, 0.01, 0.01]);
        assert_eq!(faults("checkouts --fail 0.5"), [0.5, 0.01, 0.01]);
        assert_eq!(faults("provider"), [0.0; 3]);
        assert_eq!(faults("provider --listen 127.0.0.1:1 --hang 0.2"), [0.0, 0.2, 0.0]);
    }

    #[test]
    fn what_makes_no_sense_is_told_by_its_name() {
        for (line, named) in [
            ("kill --kils 3", "--kils"),
            ("timers --rate 5", "--rate"),
            ("kill --kills many", "many"),
            ("flood --seconds", "--seconds"),
            ("suspects --deadly perhaps", "yes, no"),
            ("children --child nobody", "key_actor, ingress, committer, dispatcher, shard, all"),
            ("fleet", "--scenario"),
            ("fleet --scenario nothing", "answer_lost"),
            ("fleet --scenario kill --ttl 0", "--ttl"),
            ("fleet --scenario kill --workers 0", "--workers"),
            ("calls --operations 0", "--operations"),
            ("nothing", "nothing"),
        ] {
            let error = asked(line).unwrap_err();
            assert!(error.use_stderr() && error.to_string().contains(named), "{line}: {error}");
        }
    }

    #[test]
    fn one_child_or_all_of_them_are_ended() {
        let children = |line: &str| match asked(line).unwrap().0 {
            Scenario::Children(plan) => plan.children.iter().map(|child| child.as_str()).collect::<Vec<_>>().join(" "),
            other => panic!("{other:?}"),
        };
        assert_eq!(children("children"), "key_actor ingress committer dispatcher shard");
        assert_eq!(children("children --child all"), children("children"));
        assert_eq!(children("children --child committer"), "committer");
    }

    #[test]
    fn the_command_that_runs_it_again_has_a_seed_where_the_scenario_does() {
        let again = |line: &str| asked(line).unwrap().1;
        assert_eq!(again("kill --kills 3"), "perkey-chaos kill --kills 3 --seed 1");
        assert_eq!(again("kill --seed 7"), "perkey-chaos kill --seed 7");
        assert_eq!(again("kill --seed=7"), "perkey-chaos kill --seed=7");
        assert_eq!(again("timers"), "perkey-chaos timers");
        for line in ["kill", "children", "checkouts", "calls", "suspects", "flood", "fleet --scenario held"] {
            let again = again(line);
            assert!(asked(again.strip_prefix("perkey-chaos ").unwrap()).is_ok(), "{again}");
        }
    }
}
