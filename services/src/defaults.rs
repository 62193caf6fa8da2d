//! The settings that hold without any file: Perkey's own, Budget Manager's routes and its own settings.
//! In: nothing, or settings. Out: settings that `up` and `import` can run with; the handlers that they describe.

use std::time::Duration;

use budget_actors::{App, Checkouts, Payments, Provider};
use perkey::unstable::settings::duration;
use perkey::{Bind, Handler, Handlers, IdWithin, KeyFrom, Settings};

/// The prefix of the environment variables of its settings.
pub const ENV_PREFIX: &str = "BUDGET_";

/// The environment variable that sets the log's filter.
pub const LOG_VARIABLE: &str = "BUDGET_LOG";

/// Perkey's defaults and the routes between Budget Manager's services.
pub fn settings() -> Settings {
    let posted = Bind {
        source: "embedded".to_owned(),
        kind: "transaction.posted".to_owned(),
        service: "balances".to_owned(),
        key: KeyFrom::Record,
        id: IdWithin::Key,
    };
    let app = APP.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Settings { bind: vec![posted], app, ..Settings::default() }
}

/// Budget Manager's own settings.
const APP: [(&str, &str); 4] =
    [("provider_url", ""), ("provider_timeout", "5s"), ("checkout_patience", "15m"), ("checkout_pause", "10s")];

/// A dependency of handlers that the settings do not configure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lack {
    /// The services that need it.
    pub services: &'static [&'static str],
    /// The missing dependency, and the setting for it.
    pub what: &'static str,
}

/// Dependencies that the settings lack: operations of these services are refused at the front doors, as they would wait
/// for ever.
pub fn lacks(settings: &Settings) -> Vec<Lack> {
    let provider = settings.app.get("provider_url").is_some_and(|url| !url.is_empty());
    let what = "there is no payment provider: set app.provider_url to its address; charges, refunds and checkouts are \
                refused until then";
    let lack = Lack { services: &[Payments::<Provider>::SERVICE, Checkouts::SERVICE], what };
    (!provider).then_some(lack).into_iter().collect()
}

/// Budget Manager's handlers, configured by the settings; or all problems of those.
pub fn handlers(settings: &Settings) -> Result<Handlers, Vec<String>> {
    let mut problems = Vec::new();
    let text = |name: &str| settings.app.get(name).map_or("", String::as_str);
    let mut time = |name: &str| {
        match duration(text(name)) {
            Ok(time) if !time.is_zero() => return time,
            Ok(_) => problems.push(format!("app.{name}: {:?} is not above 0", text(name))),
            Err(problem) => problems.push(format!("app.{name}: {problem}")),
        }
        Duration::from_secs(1)
    };
    let timeout = time("provider_timeout");
    let checkouts = Checkouts { patience: time("checkout_patience"), pause: time("checkout_pause") };
    match Provider::new(text("provider_url"), timeout) {
        Ok(provider) if problems.is_empty() => Ok(budget_actors::handlers(&App { provider, checkouts })),
        Ok(_) => Err(problems),
        Err(problem) => {
            problems.push(format!("app.provider_url: {problem}"));
            Err(problems)
        }
    }
}

#[cfg(test)]
mod tests {
    use perkey::unstable::settings::load::{Origin, Sources, load};

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/default.toml");

    #[test]
    fn the_shipped_file_names_every_setting_with_its_default() {
        let file = Sources { file: Some(FILE.into()), defaults: super::settings(), ..Sources::default() };
        let loaded = load(&file).unwrap();
        assert_eq!(loaded.settings, super::settings());
        // A list that is empty by default is shown in a comment only.
        let empty = ["publish", "dependency", "limit", "cron"];
        let missing = |origin: &&Origin| origin.origin == "default" && !empty.contains(&origin.setting.as_str());
        let missing: Vec<_> = loaded.origins.iter().filter(missing).map(|origin| &origin.setting).collect();
        assert!(missing.is_empty(), "not in config/default.toml: {missing:?}");
    }

    #[test]
    fn what_the_settings_lack_is_known_before_anything_waits_for_it() {
        let mut settings = super::settings();
        let [lack] = super::lacks(&settings)[..] else { panic!("nothing is lacking without a provider") };
        assert_eq!((lack.services, lack.what.contains("app.provider_url")), (&["payments", "checkouts"][..], true));
        settings.app.insert("provider_url".to_owned(), "http://127.0.0.1:1".to_owned());
        assert_eq!(super::lacks(&settings), []);
    }

    #[test]
    fn every_bad_setting_of_its_own_is_told() {
        let mut settings = super::settings();
        assert!(super::handlers(&settings).is_ok());
        for (name, value) in [("provider_url", "no url"), ("provider_timeout", "0s"), ("checkout_patience", "soon")] {
            settings.app.insert(name.to_owned(), value.to_owned());
        }
        let problems = super::handlers(&settings).unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems.iter().all(|problem| problem.starts_with("app.")), "{problems:?}");
    }

    #[test]
    fn every_setting_of_the_shipped_file_has_a_comment() {
        let text = std::fs::read_to_string(FILE).unwrap();
        let lines: Vec<_> = text.lines().collect();
        for pair in lines.windows(2).filter(|pair| pair[1].contains(" = ") && !pair[1].starts_with('#')) {
            let in_bind = pair[1].starts_with("type") || pair[1].starts_with("service");
            assert!(pair[0].starts_with('#') || in_bind, "no comment above {:?}", pair[1]);
        }
    }
}
