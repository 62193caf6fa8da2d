//! Something that is not a handler is given to the program.

use perkey::{Fault, Handler, Key, Turn};

#[derive(serde::Deserialize)]
struct Seen {
    page: String,
}

#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
struct Count {
    n: u64,
}

struct Pages;

impl Handler for Pages {
    const SERVICE: &'static str = "pages";
    type Message = Seen;
    type State = Count;

    fn key(&self, seen: &Seen) -> Key {
        Key::from(seen.page.as_str())
    }

    async fn handle(&self, count: &mut Count, seen: Seen, turn: &mut Turn) -> Result<(), Fault> {
        count.n += 1;
        Ok(())
    }
}

fn handlers() -> perkey::Handlers {
    perkey::Handlers::new().with(Count { n: 0 })
}
