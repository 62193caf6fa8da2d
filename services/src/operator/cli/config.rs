//! `config show` and `config check`: the settings and their origins.
//! In: loaded settings. Out: TOML or a table, without secrets.

use perkey::unstable::settings::load::{Loaded, Origin};
use perkey::unstable::store;

use super::args::ConfigCommand;
use super::output::{Out, table};
use super::{Done, Ended};

/// Shows the settings, or says that they are fine. Wrong ones have been reported before this.
pub fn config(loaded: &Loaded, asked: &ConfigCommand, out: Out) -> Ended {
    match asked {
        ConfigCommand::Check => {
            store::check_url(&loaded.settings)?;
            let fine = serde_json::json!({ "problems": [] });
            out.show(&fine, |_| "The settings are fine.".to_owned())?;
        }
        ConfigCommand::Show { origins: true } => out.show(&loaded.origins, |origins| {
            let row = |origin: &Origin| vec![origin.setting.clone(), origin.value.clone(), origin.origin.clone()];
            table(&["setting", "value", "origin"], origins.iter().map(row))
        })?,
        ConfigCommand::Show { origins: false } => {
            let values: serde_json::Map<_, _> =
                loaded.origins.iter().map(|origin| (origin.setting.clone(), origin.value.clone().into())).collect();
            out.show(&values, |_| {
                let lines = loaded.origins.iter().map(|origin| format!("{} = {}", origin.setting, origin.value));
                lines.collect::<Vec<_>>().join("\n")
            })?;
        }
    }
    Ok(Done::All)
}
