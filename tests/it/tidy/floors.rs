//! The map as a check: imports of the runtime point down, and no two files of a crate need each other.
//! In: the project's Rust files. Out: each import that points up, each circle, each crate that the ledger must not know.
//!
//! A path is followed to the file that defines what it names, through re-exports. A module and its own children may name
//! each other: they are one idea in several files.

use std::collections::{BTreeMap, BTreeSet};

use super::scan::{File, Rust, project};
use super::{found, holds};

/// The floors of the runtime, from the ground up. Each imports from lower ones only; those of one row do not know each other.
const FLOORS: &[&[&str]] = &[
    &["clock"],
    &["settings"],
    &["message"],
    &["handler"],
    &["store"],
    &["metrics"],
    &["telemetry"],
    &["transport"],
    &["handlers"],
    &["ledger"],
    &["shard"],
    &["fleet"],
    &["engine"],
    &["testing"],
];

/// Folders that decide, and what they must not know: who decides neither waits nor tells.
const PURE: &[(&str, &[&str])] = &[("runtime/src/ledger", &["ractor", "tokio", "tracing"])];

/// A place in a crate: the names of the modules down to it, and those of what it names there.
type Path = Vec<String>;

/// A crate's files by their modules.
struct Crate<'a> {
    files: BTreeMap<Path, &'a File>,
    /// The re-exports of each module: the name, and the place that it comes from.
    exports: BTreeMap<Path, BTreeMap<String, Path>>,
}

/// An import: the line in which it stands, and the module that defines what it names.
struct Import {
    line: usize,
    module: Path,
}

/// True if the statement at `at` in a file is public beyond it: a re-export.
fn is_export(code: &str, at: usize) -> bool {
    let statement = code[..at].rsplit([';', '}', '{']).next().unwrap_or_default().trim();
    statement.ends_with("use") && statement.contains("pub")
}

/// The paths of a tree of imports (`a::{b, c::d}`, or a plain path) that begins at `at`, each with the name that it gets.
fn tree(code: &str, at: usize) -> Vec<(Path, String)> {
    let mut paths = Vec::new();
    branch(code, at, &mut Vec::new(), &mut paths);
    paths
}

/// Reads one branch of a tree and answers where it ends.
fn branch(code: &str, mut at: usize, before: &mut Path, paths: &mut Vec<(Path, String)>) -> usize {
    let deep = before.len();
    loop {
        at += code[at..].len() - code[at..].trim_start().len();
        if code[at..].starts_with('{') {
            at += 1;
            while !code[at..].trim_start().starts_with('}') && at < code.len() {
                at = branch(code, at, before, paths);
                let rest = code[at..].trim_start();
                at = code.len() - rest.len() + usize::from(rest.starts_with(','));
            }
            before.truncate(deep);
            return code.len() - code[at..].trim_start().len() + 1;
        }
        let word = code[at..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len() - at);
        before.push(code[at..at + word].to_owned());
        at += word;
        if !code[at..].starts_with("::") {
            break;
        }
        at += 2;
    }
    if before.last().is_some_and(|name| name == "self") && before.len() > 1 {
        before.pop();
    }
    let mut name = before.last().cloned().unwrap_or_default();
    if let Some(renamed) = code[at..].trim_start().strip_prefix("as ") {
        name = renamed.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("").to_owned();
        at = code.len() - renamed.len() + name.len();
    }
    paths.push((before.clone(), name));
    before.truncate(deep);
    at
}

impl<'a> Crate<'a> {
    fn of(files: &'a [File], folder: &str) -> Self {
        let start = format!("{folder}/src/");
        let sources =
            files.iter().filter_map(|file| Some((file.path.strip_prefix(&start)?.strip_suffix(".rs")?, file)));
        let module = |path: &str| match path {
            "lib" | "main" => Path::new(),
            path => path.split('/').map(str::to_owned).collect(),
        };
        let files = sources.map(|(path, file)| (module(path), file)).collect();
        let mut all = Self { files, exports: BTreeMap::new() };
        for (module, file) in &all.files {
            let rust = file.rust();
            let named = all.named(module, &rust);
            let exported = named.into_iter().filter(|(at, ..)| is_export(&rust.code, *at));
            all.exports.insert(module.clone(), exported.map(|(_, path, name)| (name, path)).collect());
        }
        all
    }

    /// Every path of this crate that a file names, from the crate's root, with its place and the name that it gets.
    fn named(&self, module: &Path, rust: &Rust) -> Vec<(usize, Path, String)> {
        let mut named = Vec::new();
        let code = &rust.code[..rust.tests_at()];
        for (at, word) in rust.words().filter(|(at, _)| *at < code.len()) {
            let own = code[..at].trim_end().ends_with("use")
                && self.files.contains_key(&[module.as_slice(), &[word.to_owned()]].concat());
            let begins = ["crate", "self", "super"].contains(&word) || own;
            let inside = code[..at].ends_with("::") || code[..at].ends_with('.');
            if !begins
                || inside
                || !code[at + word.len()..].starts_with("::")
                || code[..at].trim_end().ends_with("pub(in")
            {
                continue;
            }
            for (path, name) in tree(code, at) {
                if let Some(path) = absolute(module, path) {
                    named.push((at, path, name));
                }
            }
        }
        named
    }

    /// The module that defines what a path names.
    fn defined_in(&self, path: &Path) -> Path {
        let mut path = path.clone();
        // Longer chains of re-exports than this are circles.
        for _ in 0..8 {
            let deepest = (0..=path.len()).rev().find(|n| self.files.contains_key(&path[..*n])).unwrap_or(0);
            let (module, rest) = path.split_at(deepest);
            let source = rest.first().and_then(|name| self.exports.get(module)?.get(name));
            match source {
                Some(source) => path = [source.as_slice(), &rest[1..]].concat(),
                None => return module.to_vec(),
            }
        }
        path
    }

    /// The imports of a file from other files of its crate.
    fn imports(&self, module: &Path) -> Vec<Import> {
        let rust = self.files[module].rust();
        let named = self.named(module, &rust).into_iter();
        let all = named.map(|(at, path, _)| Import { line: rust.line(at), module: self.defined_in(&path) });
        all.filter(|import| import.module != *module && !import.module.is_empty()).collect()
    }

    /// The circles: files that need each other, in whatever way around, but for modules and their own children.
    fn circles(&self) -> Vec<BTreeSet<&Path>> {
        let modules: Vec<&Path> = self.files.keys().filter(|module| !module.is_empty()).collect();
        let needs =
            |module: &Path| self.imports(module).into_iter().map(|import| import.module).collect::<BTreeSet<_>>();
        let needs: BTreeMap<&Path, BTreeSet<Path>> = modules.iter().map(|module| (*module, needs(module))).collect();
        let kin = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
        let mut reached: BTreeMap<&Path, BTreeSet<&Path>> = BTreeMap::new();
        for module in &modules {
            let (mut seen, mut next) = (BTreeSet::new(), vec![*module]);
            while let Some(at) = next.pop() {
                for needed in modules.iter().filter(|needed| needs[at].contains(**needed) && !kin(at, needed)) {
                    if seen.insert(*needed) {
                        next.push(needed);
                    }
                }
            }
            reached.insert(module, seen);
        }
        let circle = |module: &&Path| {
            reached[*module].iter().filter(|other| reached[**other].contains(*module)).copied().collect()
        };
        let circles: BTreeSet<BTreeSet<&Path>> =
            modules.iter().map(circle).filter(|circle: &BTreeSet<_>| circle.len() > 1).collect();
        circles.into_iter().collect()
    }
}

/// A path from the crate's root, of one that a module names.
fn absolute(module: &Path, path: Path) -> Option<Path> {
    match path.first()?.as_str() {
        "crate" => Some(path[1..].to_vec()),
        "self" => Some([module.as_slice(), &path[1..]].concat()),
        "super" => {
            let up = path.iter().take_while(|name| *name == "super").count();
            Some([module.get(..module.len().checked_sub(up)?)?, &path[up..]].concat())
        }
        _ => Some([module.as_slice(), &path].concat()),
    }
}

fn upward(files: &[File]) -> Vec<String> {
    let runtime = Crate::of(files, "runtime");
    let floor = |module: &Path| {
        FLOORS.iter().position(|floor| module.first().is_some_and(|name| floor.contains(&name.as_str())))
    };
    let mut problems = Vec::new();
    for (module, file) in runtime.files.iter().filter(|(module, _)| !module.is_empty()) {
        let path = &file.path;
        let Some(here) = floor(module) else {
            problems.push(format!("{path}:1: it is on no floor: give its module one in FLOORS"));
            continue;
        };
        for Import { line, module: other } in runtime.imports(module) {
            if module[0] != other[0] && floor(&other).is_some_and(|there| there >= here) {
                let other = other.join("/");
                problems
                    .push(format!("{path}:{line}: imports {other}, which is not below it: move what both need down"));
            }
        }
    }
    problems
}

fn circles(files: &[File]) -> Vec<String> {
    let folders: BTreeSet<&str> =
        files.iter().filter(|file| file.is_source()).filter_map(|file| file.path.split("/src/").next()).collect();
    let mut problems = Vec::new();
    for folder in folders {
        for circle in Crate::of(files, folder).circles() {
            let names: Vec<String> = circle.iter().map(|module| module.join("/")).collect();
            problems.push(format!(
                "{folder}/src:1: {} need each other: move what they share to a file of its own",
                names.join(", ")
            ));
        }
    }
    problems
}

fn impure(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.is_source()) {
        let rust = file.rust();
        for (folder, banned) in PURE.iter().filter(|(folder, _)| file.path.starts_with(folder)) {
            for (at, word) in rust.words().filter(|(_, word)| banned.contains(word)) {
                if rust.code[at + word.len()..].starts_with("::") {
                    let (path, line) = (&file.path, rust.line(at));
                    problems.push(format!("{path}:{line}: names {word}: {folder} decides, others act"));
                }
            }
        }
    }
    problems
}

#[test]
fn imports_point_down() {
    holds(upward(&project()));
}

#[test]
fn no_files_need_each_other() {
    holds(circles(&project()));
}

#[test]
fn the_ledger_decides_and_does_nothing_else() {
    holds(impure(&project()));
}

#[test]
fn an_import_that_points_up_is_found_through_a_re_export() {
    let files = [
        File::planted(
            "runtime/src/clock.rs",
            "//! x\nuse crate::{message::Key, settings};\n// crate::engine::Engine\n",
        ),
        File::planted("runtime/src/message.rs", "//! x\nmod inner;\npub use inner::Key;\n"),
        File::planted(
            "runtime/src/message/inner.rs",
            "//! x\nuse super::Other;\nfn a() -> crate::clock::Millis { 1 }\n",
        ),
        File::planted(
            "runtime/src/settings.rs",
            "//! x\n\n#[cfg(test)]\nmod tests {\n    use crate::engine::Engine;\n}\n",
        ),
        File::planted("runtime/src/stray.rs", "//! x\n"),
    ];
    let starts = [
        "runtime/src/clock.rs:2: imports message/inner,",
        "runtime/src/clock.rs:2: imports settings,",
        "runtime/src/stray.rs:1: it is on no floor",
    ];
    found(upward(&files), &starts);
}

#[test]
fn a_circle_is_found_and_a_family_is_none() {
    let files = [
        File::planted("chaos/src/a.rs", "//! x\nuse crate::b::B;\n"),
        File::planted("chaos/src/b.rs", "//! x\nfn f(x: super::c::C) {}\n"),
        File::planted("chaos/src/c.rs", "//! x\nuse super::a as d;\n"),
        File::planted("chaos/src/c/e.rs", "//! x\nuse super::F;\n"),
        File::planted("chaos/src/c/f.rs", "//! x\nuse super::e::E;\n"),
    ];
    found(circles(&files), &["chaos/src:1: a, b, c need each other"]);
}

#[test]
fn an_actor_in_the_ledger_is_found() {
    let text = "//! tokio::x\nuse tokio::time;\nfn ractor() {}\n";
    let files = [File::planted("runtime/src/ledger/a.rs", text), File::planted("runtime/src/shard.rs", text)];
    found(impure(&files), &["runtime/src/ledger/a.rs:2: names tokio"]);
}
