//! Something that stays on its thread is held over an `await`.

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
        let page = std::rc::Rc::new(seen.page);
        std::future::ready(()).await;
        turn.emit("seen", &*page)?;
        count.n += 1;
        Ok(())
    }
}
