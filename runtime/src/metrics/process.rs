//! Facts that the system has about this process: processor time, memory, files, its start.
//! In: /proc, as Linux has it. Out: gauges; where there is no /proc they stay at 0.

use std::fs::{read_dir, read_to_string};

use super::Metrics;

/// Ticks of a second in /proc; Linux shows so many to every program, whatever it counts in itself.
const TICKS: f64 = 100.0;

/// The facts about the process.
#[derive(Clone, Copy, Debug, PartialEq)]
struct ProcessFacts {
    cpu_seconds: f64,
    resident_bytes: u64,
    open_files: u64,
    open_files_max: u64,
    started: f64,
}

/// The facts in these files: stat and status of the process, its limits, and the system's stat.
fn facts(stat: &str, status: &str, limits: &str, system: &str, open_files: u64) -> Option<ProcessFacts> {
    // The second field is a name in brackets that may have anything in it; the third is the first one here.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    let number = |text: &str, name: &str, nth: usize| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().nth(nth)?.parse::<u64>().ok()
    };
    Some(ProcessFacts {
        cpu_seconds: (ticks(14)? + ticks(15)?) / TICKS,
        resident_bytes: number(status, "VmRSS:", 0)? << 10,
        open_files,
        // Without a limit it is a word.
        open_files_max: number(limits, "Max open files", 0).unwrap_or(u64::MAX),
        started: number(system, "btime", 0)? as f64 + ticks(22)? / TICKS,
    })
}

fn look() -> Option<ProcessFacts> {
    let text = |path| read_to_string(path).ok();
    // The look itself has one open.
    let open = (read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1);
    let (stat, status) = (text("/proc/self/stat")?, text("/proc/self/status")?);
    facts(&stat, &status, &text("/proc/self/limits")?, &text("/proc/stat")?, open)
}

impl Metrics {
    /// Shows what the system knows about the process now.
    pub(super) fn look_at_process(&self) {
        let Some(facts) = look() else { return };
        let families = &self.families;
        // A counter only grows, and two looks may come at once.
        families.cpu.inner().fetch_max(facts.cpu_seconds.to_bits(), std::sync::atomic::Ordering::Relaxed);
        families.memory.set(whole(facts.resident_bytes));
        families.files.set(whole(facts.open_files));
        families.files_max.set(whole(facts.open_files_max));
        families.started.set(facts.started);
    }
}

fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 250 150 0 0 20 0 3 0 4200 1000 30";
        let status = "Name:\ta\nVmRSS:\t    2048 kB\n";
        let limits =
            "Limit Soft Hard Units\nMax open files            1024                 4096                 files\n";
        let system = "cpu 1 2 3\nbtime 1700000000\n";
        let found = facts(stat, status, limits, system, 9).unwrap();
        let wanted = ProcessFacts {
            cpu_seconds: 4.0,
            resident_bytes: 2 << 20,
            open_files: 9,
            open_files_max: 1_024,
            started: 1_700_000_042.0,
        };
        assert_eq!(found, wanted);
        assert_eq!(facts("", status, limits, system, 9), None);
        let unlimited = facts(stat, status, "Max open files  unlimited  unlimited  files\n", system, 9).unwrap();
        assert_eq!(unlimited.open_files_max, u64::MAX);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_found() {
        let found = look().unwrap();
        assert!(found.resident_bytes > 0 && found.open_files > 0 && found.started > 1.6e9, "{found:?}");
    }
}
