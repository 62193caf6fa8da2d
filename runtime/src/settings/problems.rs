//! Problems of settings, all at once.
//! In: checks. Out: each problem with the settings that it is about and what to do.

/// Something that is wrong with settings.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// The settings that it is about.
    pub about: Vec<&'static str>,
    /// What is wrong, and what to do.
    pub text: String,
}

/// Everything that is wrong so far.
#[derive(Debug, Default)]
pub(super) struct Problems(pub Vec<Problem>);

impl Problems {
    /// Says, unless it is `fine`, what the first of the settings that it is about must be: `must be at least 1`.
    pub(super) fn check(&mut self, fine: bool, about: &[&'static str], rule: &str) {
        if !fine {
            self.add(about, format!("{} {rule}", about.first().copied().unwrap_or_default()));
        }
    }

    /// A problem in words of its own.
    pub(super) fn add(&mut self, about: &[&'static str], text: String) {
        self.0.push(Problem { about: about.to_vec(), text });
    }
}
