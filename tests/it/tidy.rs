//! House rules that a reader would otherwise have to check: sizes, layers, words, and documents that stay true.
//! In: the project's own files. Out: each breach with its file, its line and what to do about it.

pub(crate) mod alerts;
mod english;
mod floors;
mod names;
pub(crate) mod scan;

use std::collections::{BTreeMap, BTreeSet};

use perkey::unstable::metrics::{Alarm, Metrics, WorkerAlarm};
use scan::{File, Rust, is_word, project, root};

const FILE_LINES_MAX: usize = 400;
const FUNCTION_LINES_MAX: usize = 70;
const FOLDER_ENTRIES_MAX: usize = 14;
const FOLDERS_BELOW_SRC_MAX: usize = 2;

/// Crates that only some files may name, by the starts of the paths that may.
const LAYERS: &[(&str, &[&str])] = &[
    ("ractor", &["runtime/src/shard", "runtime/src/fleet", "runtime/src/engine"]),
    ("sqlx", &["runtime/src/store/", "chaos/src/fleet", "chaos/src/checkouts.rs"]),
    ("rdkafka", &["runtime/src/transport/kafka", "chaos/src/fleet/topics.rs"]),
    ("lapin", &["runtime/src/transport/rabbitmq", "chaos/src/fleet/streams.rs", "chaos/src/fleet/beside.rs"]),
    ("redis", &["runtime/src/engine/cache"]),
    ("axum", &["services/src/", "chaos/src/provider.rs"]),
    ("tonic", &["services/src/"]),
    ("async_graphql", &["services/src/"]),
    ("clap", &["services/src/", "chaos/src/"]),
    ("prometheus_client", &["runtime/src/metrics"]),
    ("tracing_subscriber", &["runtime/src/telemetry"]),
    ("backoff", &["runtime/src/handler/retry.rs"]),
    ("rand", &["runtime/src/clock.rs"]),
];

/// Words that have another one here.
const SYNONYMS: &[(&str, &str)] = &[
    ("job", "message, turn, run or write"),
    ("jobs", "messages, turns, runs or writes"),
    ("poison", "dead letter"),
    ("poisoned", "dead letter"),
    ("parked", "pending or held"),
    ("quarantine", "held"),
    ("quarantined", "held"),
    ("graveyard", "dead letters"),
    ("hibernate", "passivate"),
    ("failover", "takeover"),
    ("task_queue", "ledger"),
    ("fencing_token", "epoch"),
];

/// Names of the standard library's that hold such a word.
const NOT_OURS: &[&str] = &["PoisonError", "is_poisoned", "clear_poison"];

fn holds(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

fn read(path: &str) -> File {
    let text = std::fs::read_to_string(root().join(path)).unwrap_or_default();
    assert!(!text.is_empty(), "{path}:1: it is missing or empty: write it");
    File { path: path.to_owned(), text }
}

// ---- sizes and folders

fn long_files(files: &[File]) -> Vec<String> {
    let sources = files.iter().filter(|file| file.is_source());
    let sized = sources.map(|file| {
        let code = file.rust().tests_at();
        (file, file.text[..code].lines().count() - example_lines(&file.text[..code]))
    });
    let long = sized.filter(|(_, lines)| *lines > FILE_LINES_MAX);
    long.map(|(file, lines)| {
        let path = &file.path;
        format!("{path}:{FILE_LINES_MAX}: {lines} lines without tests: move one of its ideas to a file of its own")
    })
    .collect()
}

/// The lines of examples in comments of documentation, with the empty ones before them: they are run as tests.
fn example_lines(text: &str) -> usize {
    let (mut within, mut empty, mut lines) = (false, 0, 0);
    for line in text.lines().map(str::trim_start) {
        let comment = line.strip_prefix("///").or_else(|| line.strip_prefix("//!")).map(str::trim_start);
        let fence = comment.is_some_and(|comment| comment.starts_with("```"));
        within = comment.is_some() && within != fence;
        if within || fence {
            lines += 1 + empty;
        }
        empty = usize::from(comment == Some(""));
        if within {
            empty = 0;
        }
    }
    lines
}

fn long_functions(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.is_source()) {
        let rust = file.rust();
        for (at, _) in rust.words().filter(|(at, word)| *word == "fn" && *at < rust.tests_at()) {
            let Some(body) = body(&rust, at) else { continue };
            let (first, last) = (rust.line(at), rust.line(rust.closing(body) - 1));
            let lines = last - first + 1;
            if lines > FUNCTION_LINES_MAX {
                problems.push(format!(
                    "{}:{first}: a function of {lines} lines, at most {FUNCTION_LINES_MAX}: name its steps",
                    file.path
                ));
            }
        }
    }
    problems
}

/// The brace that opens the body of the function at `at`; none when it only declares one.
fn body(rust: &Rust, at: usize) -> Option<usize> {
    let mut depth = 0;
    for (offset, byte) in rust.code.as_bytes()[at..].iter().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            // A bracket closed that was not opened: the word stood in the middle of a macro's pattern.
            b')' | b']' if depth == 0 => return None,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(at + offset),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

fn headless(files: &[File]) -> Vec<String> {
    let headless = files.iter().filter(|file| file.is_rust() && !file.text.starts_with("//! "));
    headless
        .map(|file| format!("{}:1: no `//!` line: say what the file is for, and what goes in and out", file.path))
        .collect()
}

/// Entries of a folder, a module and the folder of its name counted once, the crate's root not at all.
fn crowded_folders(files: &[File]) -> Vec<String> {
    let mut folders: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.is_source()) {
        let depth = file.path.split('/').count() - 3;
        if depth > FOLDERS_BELOW_SRC_MAX {
            problems.push(format!(
                "{}:1: {depth} folders below src, at most {FOLDERS_BELOW_SRC_MAX}: move it up",
                file.path
            ));
        }
        let mut path = file.path.as_str();
        while let Some((folder, entry)) = path.rsplit_once('/') {
            if folder.contains('/') && !["lib.rs", "main.rs"].contains(&entry) {
                folders.entry(folder).or_default().insert(entry.trim_end_matches(".rs"));
            }
            path = folder;
        }
    }
    for (folder, entries) in folders.into_iter().filter(|(_, entries)| entries.len() > FOLDER_ENTRIES_MAX) {
        let count = entries.len();
        problems
            .push(format!("{folder}:1: {count} entries, at most {FOLDER_ENTRIES_MAX}: group what belongs together"));
    }
    problems
}

#[test]
fn files_and_functions_are_short() {
    let files = project();
    holds([long_files(&files), long_functions(&files)].concat());
}

#[test]
fn every_file_says_what_it_is_for() {
    holds(headless(&project()));
}

#[test]
fn folders_are_shallow_and_small() {
    holds(crowded_folders(&project()));
}

// ---- layers and words

fn layer_breaches(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.is_source()) {
        let rust = file.rust();
        for (at, word) in rust.words() {
            let Some((name, homes)) = LAYERS.iter().find(|(name, _)| *name == word) else { continue };
            let (before, _) = rust.neighbours(at, at);
            let rest = rust.code[at + word.len()..].trim_start();
            let named = before != b':' && before != b'.' && rest.starts_with("::");
            let imported = rust.code[..at].trim_end().ends_with("use") && !rest.starts_with("::");
            if (named || imported) && !homes.iter().any(|home| file.path.starts_with(home)) {
                let (path, line) = (&file.path, rust.line(at));
                problems.push(format!("{path}:{line}: names {name}: only {} may; go through it", homes.join(", ")));
            }
        }
    }
    problems
}

fn synonyms(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let rust = file.rust();
        for (at, word) in rust.words().filter(|(_, word)| !NOT_OURS.contains(word)) {
            let parts = format!("_{}_", snake(word));
            for (synonym, ours) in SYNONYMS.iter().filter(|(synonym, _)| parts.contains(&format!("_{synonym}_"))) {
                let (path, line) = (&file.path, rust.line(at));
                problems.push(format!("{path}:{line}: `{word}` says {synonym}: the word here is {ours}"));
            }
        }
    }
    problems
}

/// `TaskQueue` and `TASK_QUEUE` as `task_queue`.
fn snake(word: &str) -> String {
    let camel = word.bytes().any(|byte| byte.is_ascii_lowercase());
    let mut snake = String::new();
    for (i, c) in word.chars().enumerate() {
        if camel && i > 0 && c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// The marks of unfinished work, in code or in words.
fn unfinished(files: &[File]) -> Vec<String> {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX"), concat!("unimpl", "emented!")];
    let found = |line: &str| {
        marks
            .iter()
            .copied()
            .find(|mark| line.match_indices(mark).any(|(at, _)| at == 0 || !is_word(line.as_bytes()[at - 1])))
    };
    lines_that(files, |line| found(line).map(|mark| format!("{mark}: finish it, or leave it out")))
}

/// Paths of the machine on which something was written.
fn machine_paths(files: &[File]) -> Vec<String> {
    let paths = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/tmp", "/bash")];
    let found = |line: &str| paths.iter().copied().find(|path| line.contains(path));
    lines_that(files, |line| found(line).map(|path| format!("{path} is a path of one machine: take it out")))
}

/// Time and chance that do not come from the clock; a run with them cannot be replayed.
fn wild_time(files: &[File]) -> Vec<String> {
    let calls = ["now", "new_v4", "now_v7", "sleep", "interval"];
    let types = ["Instant", "SystemTime", "Timestamp", "Zoned", "Utc", "Uuid", "thread", "time"];
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.is_source() && file.path != "runtime/src/clock.rs") {
        let rust = file.rust();
        let words: Vec<(usize, &str)> = rust.words().collect();
        for pair in words.windows(2) {
            let ((at, owner), (next, call)) = (pair[0], pair[1]);
            let path = &rust.code[at + owner.len()..next];
            if path == "::" && types.contains(&owner) && calls.contains(&call) {
                let (path, line) = (&file.path, rust.line(at));
                problems.push(format!("{path}:{line}: {owner}::{call}: take it from perkey::unstable::clock"));
            }
        }
    }
    problems
}

fn lines_that(files: &[File], problem: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files {
        for (no, line) in file.text.lines().enumerate() {
            problems.extend(problem(line).map(|problem| format!("{}:{}: {problem}", file.path, no + 1)));
        }
    }
    problems
}

/// Log messages are facts in lower case without a full stop; what varies is a field.
fn loud_logs(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.is_source()) {
        let rust = file.rust();
        let levels = ["trace", "debug", "info", "warn", "error"];
        for (at, word) in rust.words().filter(|(_, word)| levels.contains(word)) {
            let open = at + word.len() + 1;
            if !rust.code[at + word.len()..].starts_with("!(") {
                continue;
            }
            let span = open..rust.closing(open);
            let said = rust.literals.iter().filter(|literal| span.contains(&literal.start)).find(|literal| {
                let (before, after) = rust.neighbours(literal.start, literal.end);
                b"(,".contains(&before) && b"),".contains(&after)
            });
            let Some(said) = said else { continue };
            if said.text.starts_with(|c: char| c.is_uppercase()) || said.text.ends_with('.') {
                let (path, line) = (&file.path, rust.line(said.start));
                problems.push(format!("{path}:{line}: {:?}: begin in lower case, end without a full stop", said.text));
            }
        }
    }
    problems
}

#[test]
fn only_drivers_name_their_crates() {
    holds(layer_breaches(&project()));
}

#[test]
fn time_and_chance_come_from_the_clock() {
    holds(wild_time(&project()));
}

#[test]
fn one_word_per_idea() {
    holds(synonyms(&project()));
}

#[test]
fn nothing_is_left_unfinished() {
    holds(unfinished(&project()));
}

#[test]
fn nothing_names_a_machine() {
    holds(machine_paths(&project()));
}

#[test]
fn log_messages_are_plain_facts() {
    holds(loud_logs(&project()));
}

// ---- documents

/// The words in back quotes of a Markdown line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Paths named in back quotes that are not there.
fn dead_paths(document: &File, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut problems = Vec::new();
    for (no, line) in document.text.lines().enumerate() {
        let paths = quoted(line).filter(|word| {
            let first = word.split('/').next().unwrap_or_default();
            let ours =
                ["runtime", "actors", "services", "chaos", "examples", "tests", "docs", "config", "scripts", ".ci"];
            word.contains('/') && ours.contains(&first) && !word.contains(['*', '{', ' ', '<'])
        });
        for path in paths.filter(|path| !exists(path)) {
            problems.push(format!("{}:{}: {path} is not there: name the file that is", document.path, no + 1));
        }
    }
    problems
}

/// Rows of the table of invariants: their line, their number and the tests they name.
fn invariants(document: &File) -> Vec<(usize, usize, Vec<&str>)> {
    let rows = document.text.lines().enumerate().skip_while(|(_, line)| *line != "## Invariants").skip(1);
    let section = rows.take_while(|(_, line)| !line.starts_with("## "));
    section
        .filter_map(|(no, line)| {
            let mut cells = line.strip_prefix("| ")?.trim_end_matches(" |").split(" | ");
            let number = cells.next()?.trim().parse().ok()?;
            Some((no + 1, number, quoted(cells.last()?).collect()))
        })
        .collect()
}

/// Tests that ARCHITECTURE.md names and nobody wrote.
fn missing_tests(document: &File, files: &[File]) -> Vec<String> {
    let mut tests = BTreeSet::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let rust = file.rust();
        let words: Vec<&str> = rust.words().map(|(_, word)| word).collect();
        tests.extend(words.windows(2).filter(|pair| pair[0] == "fn").map(|pair| pair[1].to_owned()));
    }
    let mut problems = Vec::new();
    for (line, number, named) in invariants(document) {
        for name in named.iter().map(|name| name.rsplit("::").next().unwrap_or(name)) {
            if !tests.contains(name) {
                problems.push(format!("{}:{line}: invariant {number}: no test is called {name}", document.path));
            }
        }
    }
    problems
}

/// Names in the first column of the tables of a document.
fn first_column(document: &File) -> BTreeSet<String> {
    let rows = document.text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn the_documents_name_files_that_exist() {
    let documents = project().into_iter().filter(|file| file.path.ends_with(".md"));
    holds(documents.flat_map(|document| dead_paths(&document, |path| root().join(path).exists())).collect());
}

#[test]
fn every_invariant_has_its_tests() {
    let document = read("ARCHITECTURE.md");
    holds(missing_tests(&document, &project()));
    let rows = invariants(&document);
    assert_eq!(rows.iter().map(|row| row.1).collect::<Vec<_>>(), (1..=15).collect::<Vec<_>>());
    let unguarded: Vec<_> = rows.iter().filter(|row| row.2.is_empty()).map(|row| row.1).collect();
    assert!(unguarded.is_empty(), "ARCHITECTURE.md: no test guards {unguarded:?}: write one");
}

#[test]
fn the_architecture_fits_a_sitting() {
    let lines = read("ARCHITECTURE.md").text.lines().count();
    assert!(lines <= 250, "ARCHITECTURE.md:250: {lines} lines: move detail to the code it speaks of");
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_exists() {
    let documented = first_column(&read("docs/metrics.md"));
    let exposed: BTreeSet<String> = Metrics::new().names().iter().cloned().collect();
    let missing: Vec<_> = exposed.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&exposed).collect();
    assert!(missing.is_empty(), "docs/metrics.md:1: add a row each for {missing:?}");
    assert!(gone.is_empty(), "docs/metrics.md:1: no metric has these names, remove their rows: {gone:?}");
}

#[test]
fn every_alarm_says_what_to_do() {
    let answered = first_column(&read("docs/operations.md"));
    let alarms = Alarm::ALL.iter().map(|alarm| alarm.as_str());
    let alarms = alarms.chain(WorkerAlarm::ALL.iter().map(|alarm| alarm.as_str()));
    let open: Vec<_> = alarms.filter(|word| !answered.contains(*word)).collect();
    assert!(open.is_empty(), "docs/operations.md:1: say what to do about {open:?}");
}

#[test]
fn the_changelog_is_open() {
    let changelog = read("CHANGELOG.md").text;
    assert!(changelog.contains("\n## [Unreleased]\n"), "CHANGELOG.md:1: add the section `## [Unreleased]`");
}

// ---- each check finds what it is for

#[track_caller]
fn found(problems: Vec<String>, starts: &[&str]) {
    let fits = |(problem, start): (&String, &&str)| problem.starts_with(*start);
    assert!(problems.len() == starts.len() && problems.iter().zip(starts).all(fits), "{problems:#?}");
}

#[test]
fn a_long_file_is_found_and_its_tests_are_not_counted() {
    let (code, tests) = ("//! x\n".repeat(401), "\n#[cfg(test)]\nmod tests {\n");
    let long = File::planted("runtime/src/a.rs", &format!("{code}{tests}"));
    let short = File::planted("runtime/src/b.rs", &format!("//! x\n{tests}{code}}}\n"));
    let example = format!("//! x\n{}", "/// x\n///\n/// ```\n/// f();\n/// ```\nfn f() {}\n".repeat(199));
    let taught = File::planted("runtime/src/c.rs", &example);
    found(long_files(&[long, short, taught]), &["runtime/src/a.rs:400: "]);
}

#[test]
fn a_long_function_is_found() {
    let body = "    a();\n".repeat(69);
    let text = format!(
        "//! x\ntrait T {{\n    fn declared(&self);\n}}\nfn long(x: [u8; 2]) {{\n{body}}}\nfn fits() {{\n{}}}\n",
        &body[9..]
    );
    found(long_functions(&[File::planted("runtime/src/a.rs", &text)]), &["runtime/src/a.rs:5: a function of 71 lines"]);
}

#[test]
fn a_file_without_a_header_is_found() {
    let files = [File::planted("runtime/src/a.rs", "use a;\n"), File::planted("runtime/src/b.rs", "//! b\n")];
    found(headless(&files), &["runtime/src/a.rs:1: "]);
}

#[test]
fn crowded_and_deep_folders_are_found() {
    let modules = |count: usize| (0..count).map(|i| File::planted(&format!("runtime/src/a/m{i}.rs"), ""));
    let mut files: Vec<File> = modules(14).collect();
    // A module's folder and the crate's root are not entries of their own.
    files.extend(["runtime/src/a/m1/x.rs", "runtime/src/lib.rs"].map(|path| File::planted(path, "")));
    found(crowded_folders(&files), &[]);
    files.push(File::planted("runtime/src/a/m1/y/z.rs", ""));
    files.extend(modules(15));
    found(crowded_folders(&files), &["runtime/src/a/m1/y/z.rs:1: 3 folders", "runtime/src/a:1: 15 entries"]);
}

#[test]
fn a_crate_out_of_its_layer_is_found() {
    let text = "//! sqlx::query\nuse sqlx::Row;\nlet axum = 1;\nfn a() { let x = axum::serve(); }\nuse tonic;\n";
    let files = [
        File::planted("runtime/src/store.rs", text),
        File::planted("services/src/gateway.rs", "//! x\nuse axum::Router;\nlet x = settings.backoff::<u8>();\n"),
        File::planted("runtime/src/store/sqlite.rs", "//! x\nuse sqlx::Row;\n"),
    ];
    found(
        layer_breaches(&files),
        &[
            "runtime/src/store.rs:2: names sqlx",
            "runtime/src/store.rs:4: names axum",
            "runtime/src/store.rs:5: names tonic",
        ],
    );
}

#[test]
fn time_from_elsewhere_is_found() {
    let text = "//! Instant::now\nlet a = std::time::Instant::now();\nlet b = clock.now();\ntokio::time::sleep(x);\nInstant::from(b);\n";
    let files = [File::planted("runtime/src/a.rs", text), File::planted("runtime/src/clock.rs", text)];
    found(wild_time(&files), &["runtime/src/a.rs:2: Instant::now", "runtime/src/a.rs:4: time::sleep"]);
}

#[test]
fn a_synonym_is_found_in_any_spelling() {
    let text =
        "//! job\nlet job_id = 1; // poisoned\nstruct TaskQueue;\nconst PARKED: u8 = 1;\nPoisonError; jobless();\n";
    found(
        synonyms(&[File::planted("tests/it/a.rs", text)]),
        &["tests/it/a.rs:2: `job_id`", "tests/it/a.rs:3: `TaskQueue`", "tests/it/a.rs:4: `PARKED`"],
    );
}

#[test]
fn unfinished_work_and_machine_paths_are_found() {
    let text = ["a", concat!("// TO", "DO: b"), concat!("in /wo", "rk/x"), concat!("mas", "TO", "DOn")].join("\n");
    let files = [File::planted("docs/a.md", &text)];
    found(unfinished(&files), &["docs/a.md:2: "]);
    found(machine_paths(&files), &["docs/a.md:3: "]);
}

#[test]
fn a_loud_log_message_is_found() {
    let text = concat!(
        "//! x\ninfo!(kind = \"Posted\", \"a fact\");\n",
        "warn!(\n    target: \"X\",\n    id = f(\"A.\".len()),\n    \"Turn failed\"\n);\n",
        "error!(\"it ended.\");\nlet info = Some(\"Not one.\");\n",
    );
    let starts = ["runtime/src/a.rs:6: \"Turn failed\"", "runtime/src/a.rs:8: \"it ended.\""];
    found(loud_logs(&[File::planted("runtime/src/a.rs", text)]), &starts);
}

#[test]
fn dead_paths_and_missing_tests_are_found() {
    let text = concat!(
        "see `runtime/src/gone.rs`, `runtime/src/lib.rs` and `a/b`\n## Invariants\n| no | what | tests |\n|---|---|---|\n",
        "| 1 | x `y` | `tidy::is_there`, `is_not` |\n| 2 | z | — |\n## Next\n| 3 | z | `later` |\n",
    );
    let document = File::planted("ARCHITECTURE.md", text);
    found(dead_paths(&document, |path| path.ends_with("lib.rs")), &["ARCHITECTURE.md:1: runtime/src/gone.rs"]);
    let tests = [File::planted("tests/it/tidy.rs", "//! x\n// fn is_not() {}\n#[test]\nfn is_there() {}\n")];
    found(missing_tests(&document, &tests), &["ARCHITECTURE.md:5: invariant 1: no test is called is_not"]);
    let rows: Vec<_> = invariants(&document).into_iter().map(|row| (row.1, row.2.len())).collect();
    assert_eq!(rows, [(1, 2), (2, 0)]);
}
