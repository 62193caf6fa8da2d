//! Problems of settings, all at once.
//! In: checks. Out: each problem with the settings that it is about and what to do.

/// A problem of settings.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// The settings that it is about.
    pub about: Vec<&'static str>,
    /// The problem, and what to do about it.
    pub text: String,
}

/// All problems found so far.
#[derive(Debug, Default)]
pub(super) struct Problems(pub Vec<Problem>);

impl Problems {
    /// Adds a problem, unless `fine`: the first of the settings that it is about, with its rule: `must be at least 1`.
    pub(super) fn check(&mut self, fine: bool, about: &[&'static str], rule: &str) {
        if !fine {
            self.add(about, format!("{} {rule}", about.first().copied().unwrap_or_default()));
        }
    }

    /// Adds a problem with its own text.
    pub(super) fn add(&mut self, about: &[&'static str], text: String) {
        self.0.push(Problem { about: about.to_vec(), text });
    }
}
