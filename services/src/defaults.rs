//! The settings that hold without any file: Perkey's own, and Budget Manager's routes.
//! In: nothing. Out: settings that `up` and `import` can run with.

use perkey::settings::{Bind, KeyFrom, Settings};

/// Perkey's defaults and the routes between Budget Manager's services.
pub fn settings() -> Settings {
    let posted = Bind {
        source: "embedded".to_owned(),
        kind: "transaction.posted".to_owned(),
        service: "balances".to_owned(),
        key: KeyFrom::Record,
    };
    Settings { bind: vec![posted], ..Settings::default() }
}

#[cfg(test)]
mod tests {
    use perkey::settings::load::{Origin, Sources, load};

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/default.toml");

    #[test]
    fn the_shipped_file_names_every_setting_with_its_default() {
        let file = Sources { file: Some(FILE.into()), defaults: super::settings(), ..Sources::default() };
        let loaded = load(&file).unwrap();
        assert_eq!(loaded.settings, super::settings());
        // A list that is empty by default is shown in a comment only.
        let empty = ["publish", "dependency", "limit"];
        let missing = |origin: &&Origin| origin.origin == "default" && !empty.contains(&origin.setting.as_str());
        let missing: Vec<_> = loaded.origins.iter().filter(missing).map(|origin| &origin.setting).collect();
        assert!(missing.is_empty(), "not in config/default.toml: {missing:?}");
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
