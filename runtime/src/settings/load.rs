//! Reads settings from defaults, a file, the environment and flags; each overrules the ones before it.
//! In: the places to look. Out: checked settings and their origins, or every problem at once, with its origin.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};
use tracing::warn;

use super::problems::Problem;
pub use super::redact::redact;
use super::words::{duration, wanted};
use super::{Bind, CronSettings, DependencySettings, IdWithin, KeyFrom, Publish, ServiceLimit, Settings};

/// The places that settings come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The values of settings that are given nowhere else.
    pub defaults: Settings,
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// The prefix of the program's environment variables: `BUDGET_`. If empty, none is read.
    pub prefix: String,
    /// The environment. Settings are the variables of that prefix with a `__`, which separates section and name; all
    /// others belong to somebody else: Kubernetes gives each pod variables with the names of services. An empty
    /// variable counts as missing.
    pub env: Vec<(String, String)>,
    /// Flags, in the order given.
    pub flags: Vec<Flag>,
}

/// A setting given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The flag as the user knows it: `--store-url`.
    pub flag: String,
    /// The setting: `store.url`.
    pub setting: String,
    /// Its value.
    pub value: String,
}

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Each setting with its value (secrets redacted) and its origin, sorted by name.
    pub origins: Vec<Origin>,
}

/// The origin of a setting's value.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Origin {
    /// The setting: `store.url`.
    pub setting: String,
    /// Its value as TOML, without secrets.
    pub value: String,
    /// `default`, `file x.toml`, `environment BUDGET_STORE__URL`, `flag --store-url`.
    pub origin: String,
}

/// Loads settings, or returns everything that is wrong with them.
pub fn load(sources: &Sources) -> Result<Loaded, Vec<String>> {
    let defaults = Value::try_from(&sources.defaults).map_err(|error| vec![format!("defaults: {error}")])?;
    let mut loading = Loading { layers: Vec::new(), problems: Vec::new(), known: leaves(&defaults), merged: defaults };
    for leaf in loading.known.clone() {
        loading.layers.push((leaf, "default".to_owned()));
    }
    if let Some(file) = &sources.file {
        loading.file(file);
    }
    let own = |name: &str| !sources.prefix.is_empty() && name.starts_with(&sources.prefix);
    let mut env: Vec<_> = sources.env.iter().filter(|(name, _)| own(name)).collect();
    env.sort();
    for (name, value) in env.into_iter().filter(|(_, value)| !value.is_empty()) {
        let rest = &name[sources.prefix.len()..];
        if rest.contains("__") {
            let setting = rest.to_lowercase().replace("__", ".");
            loading.text(&setting, value, format!("environment {name}"));
        } else if let Some(meant) = loading.meant(rest) {
            let meant = format!("{}{}", sources.prefix, meant.to_uppercase().replace('.', "__"));
            warn!(variable = %name, %meant, "a variable is not a setting and is ignored: two underscores were meant");
        }
    }
    for flag in &sources.flags {
        if !flag.value.is_empty() && redact(&flag.setting, &flag.value) != flag.value {
            let setting = &flag.setting;
            warn!(
                %setting,
                "a secret is given on the command line, where every user of this machine may read it: a file or a variable of the \
                 environment keeps it"
            );
        }
        loading.text(&flag.setting, &flag.value, format!("flag {}", flag.flag));
    }
    loading.finish()
}

/// The entry of `known` that `word` was most likely meant to be.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.into_iter().map(|candidate| (distance(word, candidate), candidate)).min()?;
    (near.0 <= (word.len() / 3).max(1)).then_some(near.1)
}

/// The end of a sentence that names the entry most likely meant; empty if nothing is near.
pub fn or_near<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    did_you_mean(word, known).map_or_else(String::new, |near| format!("; did you mean {near}?"))
}

struct Loading {
    known: Vec<String>,
    merged: Value,
    /// Setting and origin; the last one for a setting counts.
    layers: Vec<(String, String)>,
    problems: Vec<String>,
}

impl Loading {
    /// The setting that a variable would name if its underscores were doubled.
    fn meant(&self, rest: &str) -> Option<&str> {
        let rest = rest.to_lowercase();
        self.known.iter().map(String::as_str).find(|known| known.contains('.') && known.replace('.', "_") == rest)
    }

    fn file(&mut self, path: &Path) {
        let origin = format!("file {}", path.display());
        let read = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return self.problems.push(format!("cannot read the settings: {error} ({origin})")),
        };
        let text = read.strip_prefix(BOM).unwrap_or(&read);
        match text.parse::<Table>() {
            Ok(table) => self.table("", &table, &origin),
            // Not the whole error: it quotes the line, which may hold a secret.
            Err(error) => {
                let before = error.span().map_or("", |span| &text[..span.start.min(text.len())]);
                let line = before.matches('\n').count() + 1;
                self.problems.push(format!("no TOML at line {line}: {} ({origin})", error.message().trim_end()));
            }
        }
    }

    fn table(&mut self, prefix: &str, table: &Table, origin: &str) {
        for (name, value) in table {
            let setting = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            let section = self.known.iter().any(|known| in_section(known, &setting));
            match value {
                Value::Table(inner) if section => self.table(&setting, inner, origin),
                _ if section => self.problems.push(format!("{setting}: is a section, not a value ({origin})")),
                _ if setting == "bind" => self.list::<Bind>("bind", value, origin),
                _ if setting == "publish" => self.list::<Publish>("publish", value, origin),
                _ if setting == "dependency" => self.list::<DependencySettings>("dependency", value, origin),
                _ if setting == "limit" => self.list::<ServiceLimit>("limit", value, origin),
                _ if setting == "cron" => self.list::<CronSettings>("cron", value, origin),
                _ => self.set(&setting, value.clone(), origin),
            }
        }
    }

    /// Reads a list of sections, each an `E`.
    fn list<E: DeserializeOwned>(&mut self, list: &str, value: &Value, origin: &str) {
        let Value::Array(entries) = value else {
            return self.problems.push(format!("{list}: write each one as a [[{list}]] section ({origin})"));
        };
        let (before, fields) = (self.problems.len(), fields::<E>());
        for (no, entry) in (1..).zip(entries) {
            for name in entry.as_table().into_iter().flat_map(Table::keys) {
                if !fields.contains(name) {
                    let unknown = Unknown {
                        what: "setting",
                        name: format!("{list}[{no}].{name}"),
                        near: did_you_mean(name, fields.iter().map(String::as_str)),
                    };
                    self.problems.push(format!("{unknown} ({origin})"));
                }
            }
            // Unknown names are already reported: only other problems are still missing.
            match entry.clone().try_into::<E>() {
                Err(error) if !error.message().contains("unknown field") => {
                    self.problems.push(format!("{list}[{no}]: {} ({origin})", wanted_of(entry, error.message())));
                }
                Ok(_) | Err(_) => {
                    let problems = TIMES.iter().filter_map(|name| duration(entry.get(name)?.as_str()?).err());
                    self.problems.extend(problems.map(|problem| format!("{list}[{no}]: {problem} ({origin})")));
                }
            }
        }
        if before == self.problems.len() {
            self.set(list, value.clone(), origin);
        }
    }

    /// Sets a value given as text: its default says how to read it.
    fn text(&mut self, setting: &str, text: &str, origin: String) {
        if let Some(list) = LISTS.into_iter().find(|list| *list == setting || in_section(setting, list)) {
            return self.problems.push(format!("{setting}: [[{list}]] can only be set in a file ({origin})"));
        }
        let value = match at(&self.merged, setting) {
            Some(Value::Integer(_)) => text.replace('_', "").parse().map(Value::Integer).ok(),
            Some(Value::Float(_)) => text.parse().map(Value::Float).ok(),
            Some(Value::Boolean(_)) => text.parse().map(Value::Boolean).ok(),
            Some(Value::Array(_)) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
            }
            Some(_) | None => None,
        };
        self.set(setting, value.unwrap_or_else(|| Value::String(text.to_owned())), &origin);
    }

    /// Sets a value, unless its type does not fit.
    fn set(&mut self, setting: &str, value: Value, origin: &str) {
        let Some(place) = at_mut(&mut self.merged, setting).filter(|place| !place.is_table()) else {
            let sections = self.known.iter().filter_map(|name| name.split_once('.')).map(|(section, _)| section);
            let known = self.known.iter().map(String::as_str).chain(sections).chain(LISTS);
            let near = did_you_mean(setting, known.filter(|known| *known != setting));
            let unknown = Unknown { what: "setting", name: setting.to_owned(), near };
            return self.problems.push(format!("{unknown} ({origin})"));
        };
        // A setting whose default is a duration stays one.
        let is_duration = place.as_str().is_some_and(|text| duration(text).is_ok());
        if let Some(Err(problem)) = value.as_str().filter(|_| is_duration).map(duration) {
            return self.problems.push(format!("{setting}: {problem} ({origin})"));
        }
        let before = std::mem::replace(place, value);
        if let Err(error) = self.merged.clone().try_into::<Settings>() {
            let refused = at_mut(&mut self.merged, setting).map(|place| std::mem::replace(place, before));
            let shown = refused.map_or_else(String::new, |value| redact(setting, &value.to_string()));
            let reason = wanted(error.message());
            return self.problems.push(format!("{setting}: {shown} cannot be used: {reason} ({origin})"));
        }
        self.layers.push((setting.to_owned(), origin.to_owned()));
    }

    fn finish(mut self) -> Result<Loaded, Vec<String>> {
        let settings: Settings = match self.merged.clone().try_into() {
            Ok(settings) => settings,
            Err(error) => {
                self.problems.push(wanted(error.message()));
                return Err(self.problems);
            }
        };
        for Problem { about, text } in settings.found() {
            let origins: Vec<_> = about.iter().map(|name| format!("{name}: {}", self.origin(name))).collect();
            self.problems.push(format!("{text} ({})", origins.join(", ")));
        }
        if !self.problems.is_empty() {
            return Err(self.problems);
        }
        let shown = |name: &str| match name {
            "bind" => shown_binds(&settings.bind),
            "publish" => shown_publishes(&settings.publish),
            _ => at(&self.merged, name).map_or_else(String::new, |value| redact(name, &value.to_string())),
        };
        let origins = self.known.iter().map(|name| Origin {
            setting: name.clone(),
            value: shown(name),
            origin: self.origin(name).to_owned(),
        });
        let origins = origins.collect();
        Ok(Loaded { settings, origins })
    }

    fn origin(&self, setting: &str) -> &str {
        let found = self.layers.iter().rev().find(|(name, _)| name == setting);
        found.map_or("default", |(_, origin)| origin.as_str())
    }
}

/// The byte order mark with which some editors begin a file.
const BOM: char = '\u{feff}';

/// Fields of repeated sections that are durations.
const TIMES: [&str; 2] = ["open_for", "open_max"];

/// Sections that may be repeated.
const LISTS: [&str; 5] = ["bind", "publish", "dependency", "limit", "cron"];

/// The fields of a section. Serde names them only in the error for an unknown one.
fn fields<E: DeserializeOwned>() -> Vec<String> {
    let unknown = Table::from_iter([("?".to_owned(), Value::Boolean(true))]);
    let said = Value::Table(unknown).try_into::<E>().err().map(|error| error.message().to_owned()).unwrap_or_default();
    said.split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

/// The value that a section needs, with the name of the wrong field if that can be told.
fn wanted_of(entry: &Value, message: &str) -> String {
    let found = message.split('"').nth(1).unwrap_or_default();
    let field = entry.as_table().into_iter().flatten().find(|(_, value)| value.as_str() == Some(found));
    field
        .map_or_else(|| wanted(message), |(name, value)| format!("{name}: {value} cannot be used: {}", wanted(message)))
}

struct Unknown<'a> {
    what: &'static str,
    name: String,
    near: Option<&'a str>,
}

impl fmt::Display for Unknown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: there is no such {}", self.name, self.what)?;
        self.near.map_or(Ok(()), |near| write!(f, "; did you mean {near}?"))
    }
}

fn shown_binds(binds: &[Bind]) -> String {
    let shown = binds.iter().map(|bind| {
        let key = match bind.key {
            KeyFrom::Record => "record",
            KeyFrom::Handler => "handler",
        };
        let id = match bind.id {
            IdWithin::Key => "",
            IdWithin::Source => ", id = source",
        };
        format!("{} {} -> {} (key = {key}{id})", bind.source, bind.kind, bind.service)
    });
    shown.collect::<Vec<_>>().join("; ")
}

fn shown_publishes(publishes: &[Publish]) -> String {
    let shown =
        publishes.iter().map(|Publish { service, kind, sink, topic }| format!("{service} {kind} -> {sink} {topic}"));
    shown.collect::<Vec<_>>().join("; ")
}

/// Dotted names of all values, sorted; a list is a value.
fn leaves(value: &Value) -> Vec<String> {
    let mut names = Vec::new();
    let mut todo = vec![(String::new(), value)];
    while let Some((name, value)) = todo.pop() {
        match value {
            Value::Table(table) => {
                let inner = |key: &String| if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                todo.extend(table.iter().map(|(key, value)| (inner(key), value)));
            }
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::Array(_) => names.push(name),
        }
    }
    names.sort();
    names
}

fn in_section(setting: &str, section: &str) -> bool {
    setting.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
}

fn at<'a>(value: &'a Value, setting: &str) -> Option<&'a Value> {
    setting.split('.').try_fold(value, |value, name| value.get(name))
}

fn at_mut<'a>(value: &'a mut Value, setting: &str) -> Option<&'a mut Value> {
    setting.split('.').try_fold(value, |value, name| value.get_mut(name))
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(setting: &str, value: &str) -> Flag {
        Flag { flag: "--set".to_owned(), setting: setting.to_owned(), value: value.to_owned() }
    }

    fn env(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    fn file(text: &str) -> (tempfile::TempDir, Option<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.toml");
        std::fs::write(&path, text).unwrap();
        (folder, Some(path))
    }

    fn origin(loaded: &Loaded, setting: &str) -> (String, String) {
        let found = loaded.origins.iter().find(|origin| origin.setting == setting).unwrap();
        (found.value.clone(), found.origin.clone())
    }

    #[test]
    fn each_source_overrules_the_ones_before_it() {
        let (_folder, file) = file("[ingress]\ncredits = 100\nbatch_max = 10\n[commit]\nturns_max = 7\n");
        let sources = Sources {
            file: file.clone(),
            prefix: "BUDGET_".to_owned(),
            env: vec![
                env("BUDGET_INGRESS__BATCH_MAX", "2_000"),
                env("BUDGET_COMMIT__TURNS_MAX", "8"),
                env("HOME", "/"),
            ],
            flags: vec![flag("commit.turns_max", "9"), flag("retry.factor", "2"), flag("actors.slice", "7ms")],
            ..Sources::default()
        };
        let loaded = load(&sources).unwrap();
        let settings = &loaded.settings;
        assert_eq!((settings.ingress.credits, settings.ingress.batch_max, settings.commit.turns_max), (100, 2_000, 9));
        assert_eq!(settings.actors.slice, std::time::Duration::from_millis(7));
        assert_eq!(origin(&loaded, "ingress.credits").1, format!("file {}", file.unwrap().display()));
        assert_eq!(origin(&loaded, "ingress.batch_max").1, "environment BUDGET_INGRESS__BATCH_MAX");
        assert_eq!(origin(&loaded, "commit.turns_max"), ("9".to_owned(), "flag --set".to_owned()));
        assert_eq!(origin(&loaded, "log.max_unread").1, "default");
    }

    #[test]
    fn sections_that_may_be_repeated_have_their_fields() {
        let known = |fields: Vec<String>| fields.join(" ");
        assert_eq!(known(fields::<Bind>()), "source type service key id");
        assert_eq!(known(fields::<Publish>()), "service type sink topic");
        assert_eq!(known(fields::<DependencySettings>()), "name failures open_for open_max concurrency rate");
        assert_eq!(known(fields::<ServiceLimit>()), "service concurrency rate");
        assert_eq!(known(fields::<CronSettings>()), "service name cron zone enabled");
        let (_folder, file) =
            file("[[bind]]\nsource = \"kafka\"\ntype = \"a\"\nservice = \"b\"\nkey = \"handler\"\nid = \"source\"\n");
        let loaded = load(&Sources { file, ..Sources::default() }).unwrap();
        assert_eq!(loaded.settings.bind[0].id, IdWithin::Source);
    }

    #[test]
    fn all_problems_come_together_each_with_its_origin() {
        let (_folder, file) = file(
            "colour = 1\nstore = 3\n[ingres]\nx = 1\n[ingress]\ncredit = 5\ncredits = \"many\"\n[ownership]\nshards = 0\n\
             [[bind]]\ntype = \"a\"\nservise = \"b\"\n",
        );
        let sources = Sources {
            file,
            prefix: "BUDGET_".to_owned(),
            env: vec![env("BUDGET_RETRY__BASE", "soon"), env("BUDGET_STROE__URL", "x"), env("BUDGET_BIND__0", "x")],
            flags: vec![flag("ingress.unbound", "drop"), flag("ingress", "1")],
            ..Sources::default()
        };
        let problems = load(&sources).unwrap_err();
        let said = |parts: &[&str]| {
            let found = problems.iter().any(|problem| parts.iter().all(|part| problem.contains(part)));
            assert!(found, "{parts:?} is not in {problems:#?}");
        };
        said(&["colour: there is no such setting", "x.toml"]);
        said(&["ingres: there is no such setting; did you mean ingress?", "x.toml"]);
        said(&["store: is a section", "x.toml"]);
        said(&["ingress.credit: there is no such setting; did you mean ingress.credits?", "x.toml"]);
        said(&["ingress.credits: \"many\" cannot be used: a whole number", "x.toml"]);
        said(&["ownership.shards must be 1 to 256", "x.toml"]);
        said(&["bind[1].servise: there is no such setting; did you mean service?", "x.toml"]);
        said(&["retry.base: \"soon\" is not a duration such as", "environment BUDGET_RETRY__BASE"]);
        said(&["stroe.url", "did you mean store.url?", "environment BUDGET_STROE__URL"]);
        said(&["bind.0: [[bind]] can only be set in a file", "environment BUDGET_BIND__0"]);
        said(&["ingress.unbound: \"drop\" cannot be used: \"skip\" or \"dead_letter\" is wanted", "flag --set"]);
        said(&["ingress: there is no such setting", "flag --set"]);
        assert_eq!(problems.len(), 12, "{problems:#?}");
    }

    #[test]
    fn a_problem_has_the_origins_of_what_it_is_about_and_of_nothing_that_its_words_name() {
        let (_folder, file) = file("[[dependency]]\nname = \"retry.base\"\nfailures = 0\n");
        let origin = format!("file {}", file.as_ref().unwrap().display());
        let problems = load(&Sources { file, ..Sources::default() }).unwrap_err();
        let expected = format!("dependency \"retry.base\": failures must be at least 1 (dependency: {origin})");
        assert_eq!(problems, [expected]);
        let flags = vec![flag("retry.cap", "1ms")];
        let problems = load(&Sources { flags, ..Sources::default() }).unwrap_err();
        let origins = "(retry.cap: flag --set, retry.base: default)";
        assert_eq!(problems, [format!("retry.cap must be at least retry.base {origins}")]);
    }

    /// Settings whose numbers and times are 0 and whose texts are empty, which few may be.
    fn emptied() -> Settings {
        let mut value = Value::try_from(Settings::default()).unwrap();
        for leaf in leaves(&value) {
            let place = at_mut(&mut value, &leaf).unwrap();
            let empty = match &*place {
                Value::Integer(_) => Value::Integer(0),
                Value::Float(_) => Value::Float(-1.0),
                Value::String(text) if duration(text).is_ok() => Value::String("0s".to_owned()),
                Value::String(_) => Value::String(String::new()),
                other => other.clone(),
            };
            let before = std::mem::replace(place, empty);
            if value.clone().try_into::<Settings>().is_err() {
                *at_mut(&mut value, &leaf).unwrap() = before;
            }
        }
        value.try_into().unwrap()
    }

    #[test]
    fn every_problem_is_about_settings_that_there_are() {
        let known = leaves(&Value::try_from(Settings::default()).unwrap());
        let problems = emptied().found();
        assert!(problems.len() > 40, "{problems:#?}");
        for Problem { about, text } in &problems {
            assert!(!about.is_empty(), "{text}");
            assert!(about.iter().all(|name| known.iter().any(|known| known == name)), "{text}: {about:?}");
        }
    }

    #[test]
    fn variables_of_others_are_no_settings_and_empty_ones_are_not_there() {
        let of = |env: Vec<_>| load(&Sources { prefix: "BUDGET_".to_owned(), env, ..Sources::default() });
        // The variables that Kubernetes sets in each pod of a namespace with a Service `budget-manager`, and one
        // `budget`.
        let links = [
            ("BUDGET_MANAGER_SERVICE_HOST", "10.0.0.1"),
            ("BUDGET_MANAGER_SERVICE_PORT", "8080"),
            ("BUDGET_MANAGER_PORT", "tcp://10.0.0.1:8080"),
            ("BUDGET_MANAGER_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("BUDGET_PORT", "tcp://10.0.0.1:8080"),
            ("BUDGET_BIND", "x"),
            ("BUDGET_CONFIG", "x.toml"),
            // One underscore is missing: the log names it.
            ("BUDGET_STORE_URL", "sqlite://other.db"),
            ("BUDGET_RETRY__ATTEMPTS", ""),
        ];
        let loaded = of(links.map(|(name, value)| env(name, value)).to_vec()).unwrap();
        assert_eq!(loaded.settings, Settings::default());
        let problems = of(vec![env("BUDGET_MANAGER__PORT", "1")]).unwrap_err();
        assert!(problems[0].contains("manager.port: there is no such setting"), "{problems:?}");
    }

    #[test]
    fn a_variable_that_lacks_an_underscore_is_known_for_what_was_meant() {
        let known = vec!["store.url".to_owned(), "bind".to_owned()];
        let loading = Loading { known, merged: Value::Boolean(true), layers: Vec::new(), problems: Vec::new() };
        assert_eq!(loading.meant("STORE_URL"), Some("store.url"));
        assert_eq!((loading.meant("MANAGER_PORT"), loading.meant("BIND")), (None, None));
    }

    #[test]
    fn months_are_not_taken_for_minutes_anywhere() {
        let (_folder, file) = file(
            "[history]\nkeep = \"15M\"\n[[dependency]]\nname = \"x\"\nopen_for = \"1M\"\n[[limit]]\nservice = \"x\"\nrate = \"fast\"\n",
        );
        let flags = vec![flag("actors.passivate_after", "1M")];
        let problems = load(&Sources { file, flags, ..Sources::default() }).unwrap_err();
        assert_eq!(problems.len(), 4, "{problems:#?}");
        for (name, part) in [("history.keep", "15m"), ("dependency[1]", "1m"), ("actors.passivate_after", "1m")] {
            let found = problems.iter().find(|problem| problem.starts_with(name)).unwrap();
            assert!(found.contains("would be months") && found.contains(part), "{found}");
        }
        let found = problems.iter().find(|problem| problem.starts_with("limit[1]")).unwrap();
        assert!(found.contains("rate: \"fast\" cannot be used: a number such as 1.5 is wanted"), "{found}");
    }

    #[test]
    fn a_byte_order_mark_is_no_content() {
        let (_folder, file) = file("\u{feff}[retry]\r\nattempts = 3\r\n");
        assert_eq!(load(&Sources { file, ..Sources::default() }).unwrap().settings.retry.attempts, 3);
    }

    #[test]
    fn a_file_that_is_missing_or_no_toml_is_one_problem() {
        let missing = Sources { file: Some("/nowhere/x.toml".into()), ..Sources::default() };
        assert!(load(&missing).unwrap_err()[0].contains("(file /nowhere/x.toml)"));
        let (_folder, file) = file("[ingress\n");
        let problems = load(&Sources { file, ..Sources::default() }).unwrap_err();
        assert!(problems.len() == 1 && problems[0].contains("line 1"), "{problems:?}");
    }

    #[test]
    fn bindings_of_a_file_replace_the_defaults() {
        let bind = |service: &str| Bind {
            source: "embedded".to_owned(),
            kind: "transaction.posted".to_owned(),
            service: service.to_owned(),
            key: KeyFrom::Record,
            id: IdWithin::Key,
        };
        let defaults = Settings { bind: vec![bind("balances")], ..Settings::default() };
        let built_in = load(&Sources { defaults: defaults.clone(), ..Sources::default() }).unwrap();
        assert_eq!(built_in.settings, defaults);
        let (_folder, file) = file("[[bind]]\ntype = \"transaction.posted\"\nservice = \"other\"\n");
        let loaded = load(&Sources { defaults, file, ..Sources::default() }).unwrap();
        assert_eq!(loaded.settings.bind, [bind("other")]);
        assert_eq!(origin(&loaded, "bind").0, "embedded transaction.posted -> other (key = record)");
    }

    #[test]
    fn secrets_are_never_shown() {
        let url = "postgres://me:hun@ter2@db:5432/x?sslmode=require";
        let loaded = load(&Sources { flags: vec![flag("store.url", url)], ..Sources::default() }).unwrap();
        assert_eq!(loaded.settings.store.url, url);
        assert_eq!(origin(&loaded, "store.url").0, "\"postgres://me:***@db:5432/x?sslmode=require\"");
        assert_eq!(redact("kafka.sasl_password", "hunter2"), "***");
        assert_eq!(redact("kafka.properties", "[\"ssl.key.password = hunter2\"]"), "***");
        assert_eq!(redact("kafka.properties", "[\"linger.ms=5\"]"), "[\"linger.ms=5\"]");
        assert_eq!(redact("store.url", "postgres:///x?password=hunter2&a=b"), "postgres:///x?password=***&a=b");
        assert_eq!(redact("store.url", "sqlite:///a@b:c.db"), "sqlite:///a@b:c.db");
        assert_eq!(redact("gateway.tokens", "/etc/tokens"), "/etc/tokens");
        for password in ["hun/ter", "hun?ter=2", "hun@ter", "hun#ter", "hun:ter"] {
            let shown = redact("store.url", &format!("postgres://me:{password}@db:5432/x"));
            assert_eq!(shown, "postgres://me:***@db:5432/x", "{password}");
        }
        assert_eq!(redact("x", "a://b?token=hun&sslpassword=ter&c=d"), "a://b?token=***&sslpassword=***&c=d");
        assert!(!redact("rabbitmq.hosts", "amqp://a:hun@one,amqp://c:ter@two").contains("ter"));
        let refused = load(&Sources { flags: vec![flag("stor.url", url)], ..Sources::default() }).unwrap_err();
        assert!(!refused[0].contains("hun"), "{refused:?}");
    }
}
