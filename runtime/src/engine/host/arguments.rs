//! The arguments that every program has, told apart from the program's own.
//! In: the argument vector. Out: a settings file, settings, the remaining arguments.

use std::path::PathBuf;

use crate::settings::load::Flag;

/// The arguments of a program.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    /// `--config FILE`
    pub(super) config: Option<PathBuf>,
    /// `--set NAME=VALUE`
    pub(super) set: Vec<Flag>,
    /// `--help`
    pub(super) help: bool,
    /// All others.
    pub(super) rest: Vec<String>,
}

/// An argument without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ArgumentError {
    #[error("--config needs a file: --config FILE")]
    Config,
    #[error("--set needs a setting and its value: --set retry.attempts=3")]
    Set,
}

impl Arguments {
    /// Reads them. Arguments behind `--` are the program's own, and so are those that are not known here.
    pub(super) fn of(given: impl IntoIterator<Item = String>) -> Result<Self, ArgumentError> {
        let mut arguments = Self::default();
        let mut given = given.into_iter();
        while let Some(word) = given.next() {
            let (name, joined) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            match name {
                "--config" => {
                    let file = joined.or_else(|| given.next()).ok_or(ArgumentError::Config)?;
                    arguments.config = Some(file.into());
                }
                "--set" => {
                    let text = joined.or_else(|| given.next());
                    let pair = text.as_deref().and_then(|text| text.split_once('='));
                    let (setting, value) = pair.ok_or(ArgumentError::Set)?;
                    let (setting, value) = (setting.to_owned(), value.to_owned());
                    arguments.set.push(Flag { flag: "--set".to_owned(), setting, value });
                }
                "--help" | "-h" => arguments.help = true,
                "--" => {
                    arguments.rest.extend(given.by_ref());
                }
                _ => arguments.rest.push(word),
            }
        }
        Ok(arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Arguments, ArgumentError> {
        Arguments::of(words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn the_programs_own_are_left_to_it() {
        let words = ["--config", "a.toml", "x", "--set=a.b=1=2", "-", "--fast", "--set", "c=d", "--", "--config"];
        let found = of(&words).unwrap();
        assert_eq!(found.config, Some("a.toml".into()));
        let set: Vec<_> = found.set.iter().map(|flag| (flag.setting.as_str(), flag.value.as_str())).collect();
        assert_eq!(set, [("a.b", "1=2"), ("c", "d")]);
        assert_eq!(found.rest, ["x", "-", "--fast", "--config"]);
        assert!(!found.help && of(&["x", "-h"]).unwrap().help);
    }

    #[test]
    fn a_value_that_is_missing_is_told() {
        assert!(of(&["--config"]).unwrap_err().to_string().contains("--config FILE"));
        for words in [&["--set"][..], &["--set", "retry.attempts"], &["--set=x"]] {
            assert!(of(words).unwrap_err().to_string().contains("--set retry.attempts=3"), "{words:?}");
        }
    }
}
