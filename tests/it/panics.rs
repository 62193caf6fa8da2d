//! Panics of handlers, in and beside their turns: each is its message's fault, and nobody else notices.
//! In: messages that panic, far more of them than supervisors allow restarts. Out: dead letters; all others handled.

use perkey::unstable::store::Store;
use perkey::unstable::store::query::DeadFilter;
use perkey::{Engine, Fault, Handler, Handlers, Key, Settings, Turn};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::support::{append, count, open, start, state};

/// A state whose own code panics where its last message said so.
#[derive(Default)]
struct Brittle {
    n: u64,
    breaks: String,
}

impl Brittle {
    fn may_break(&self, at: &str) {
        assert!(self.breaks != at, "the state broke at {at}");
    }
}

impl Clone for Brittle {
    fn clone(&self) -> Self {
        self.may_break("clone");
        Self { n: self.n, breaks: self.breaks.clone() }
    }
}

impl Serialize for Brittle {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.may_break("encode");
        self.n.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Brittle {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self { n: u64::deserialize(from)?, breaks: String::new() })
    }
}

impl Drop for Brittle {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.may_break("drop");
        }
    }
}

/// A payload of a panic: dropping it panics once more.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "the bomb goes off");
    }
}

struct Breaking;

impl Handler for Breaking {
    const SERVICE: &'static str = "counting";
    type Message = crate::support::Count;
    type State = Brittle;

    fn key(&self, message: &Self::Message) -> Key {
        message.key.as_str().into()
    }

    async fn handle(&self, state: &mut Brittle, message: Self::Message, _: &mut Turn) -> Result<(), Fault> {
        state.n += 1;
        match message.fail.as_deref() {
            #[expect(clippy::panic, reason = "a handler that panics is what is tested")]
            Some("panic") => panic!("boom"),
            Some("bomb") => std::panic::resume_unwind(Box::new(Bomb)),
            Some(at) => at.clone_into(&mut state.breaks),
            None => {}
        }
        Ok(())
    }
}

async fn handled(engine: &Engine, store: &dyn Store) {
    let all = async {
        loop {
            engine.idle().await;
            if store.queries().shards().await.unwrap().iter().all(|row| row.pending == 0) {
                return;
            }
        }
    };
    tokio::select! {
        () = all => {}
        why = engine.failed() => panic!("the process would have ended: {why}"),
    }
}

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.retry.attempts = 3;
    settings.retry.base = std::time::Duration::from_millis(1);
    settings.retry.cap = std::time::Duration::from_millis(1);
    // As little as there can be: whatever is counted as a failure of an actor's ends the process.
    settings.supervision.key_actor.restarts = 0;
    settings.supervision.shard.restarts = 0;
    settings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_that_always_panic_end_no_shard() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings();
    let store = open(&dir.path().join("s.db")).await;
    let engine = start(&settings, store.clone(), Handlers::new().with(Breaking)).await;
    let fail = |n: usize| match n % 4 {
        0 => Some("panic"),
        1 => Some("bomb"),
        _ => None,
    };
    let messages: Vec<_> = (0..600).map(|n| count(&format!("m{n}"), &format!("k{}", n % 300), fail(n))).collect();
    append(&*store, settings.ownership.shards, "counting", &messages).await;
    handled(&engine, &*store).await;
    let dead = store.queries().peek(DeadFilter::default(), 1_000).await.unwrap();
    assert_eq!(dead.len(), 300);
    for (_, letter) in &dead {
        let text =
            if letter.history.iter().any(|attempt| attempt.error.contains("boom")) { "boom" } else { "not text" };
        assert!(letter.error.contains("the handler panicked: ") && letter.error.contains(text), "{}", letter.error);
        assert_eq!(letter.history.len(), 3);
    }
    for n in 0..300 {
        let wanted = (n % 4 > 1).then_some(2);
        assert_eq!(state::<u64>(&*store, "counting", &format!("k{n}")).await, wanted, "k{n}");
    }
    engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_beside_a_turn_is_its_messages_fault() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings();
    let store = open(&dir.path().join("s.db")).await;
    let engine = start(&settings, store.clone(), Handlers::new().with(Breaking)).await;
    let mut messages = Vec::new();
    for n in 0..90 {
        let key = format!("k{n}");
        messages.push(count(&format!("{key}-0"), &key, None));
        messages.push(count(&format!("{key}-1"), &key, Some(["clone", "encode", "drop"][n % 3])));
        messages.push(count(&format!("{key}-2"), &key, None));
    }
    append(&*store, settings.ownership.shards, "counting", &messages).await;
    handled(&engine, &*store).await;
    let dead = store.queries().peek(DeadFilter::default(), 1_000).await.unwrap();
    for (_, letter) in &dead {
        let said = "the handler panicked beside its turn: the state broke at encode";
        assert!(letter.error.contains(said), "{}", letter.error);
        assert!(letter.message.id().ends_with("-1"), "{}", letter.message.id());
    }
    assert_eq!(dead.len(), 30, "the state after these cannot be stored");
    for n in 0..90 {
        let wanted = if n % 3 == 1 { 2 } else { 3 };
        assert_eq!(state::<u64>(&*store, "counting", &format!("k{n}")).await, Some(wanted), "k{n}");
    }
    engine.drain().await.unwrap();
}
