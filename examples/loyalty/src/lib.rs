//! Loyalty points: earned, redeemed, and lost when they are not used in time.
//! In: lines such as `{"id":"1","do":"earn","member":"ann","points":100}`. Out: accounts, notices, events.

pub mod notices;
pub mod points;

use perkey::{Bind, Handlers, IdWithin, KeyFrom, Settings};

pub use notices::Notices;
pub use points::{Account, Message, Points};

/// The settings that hold where nothing else is said.
pub fn defaults(settings: &mut Settings) {
    settings.app.insert("valid_seconds".to_owned(), "31536000".to_owned());
    settings.bind.push(Bind {
        source: "embedded".to_owned(),
        kind: "points.expired".to_owned(),
        service: "notices".to_owned(),
        key: KeyFrom::Record,
        id: IdWithin::Key,
    });
}

/// The handlers, as the settings want them; or everything that is wrong with those.
pub fn handlers(settings: &Settings) -> Result<Handlers, Vec<String>> {
    let text = settings.app.get("valid_seconds").map_or("", String::as_str);
    match text.parse() {
        Ok(0) | Err(_) => Err(vec![format!("app.valid_seconds: {text:?} is not a number of seconds above 0")]),
        Ok(valid_seconds) => Ok(Handlers::new().with(Points { valid_seconds }).with(Notices)),
    }
}
