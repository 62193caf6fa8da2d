//! A payment provider in the test's hand: it waits, breaks or refuses as it is told, and remembers what it took.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The ways in which the provider answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// As it should.
    Fine,
    /// Not before it is told something else.
    Silent,
    /// With what makes no sense.
    Nonsense,
    /// That it cannot now.
    Away,
    /// That it will not.
    Declines,
}

/// The provider.
pub(crate) struct Provider {
    pub(crate) url: String,
    mood: watch::Sender<Mood>,
    taken: Arc<Mutex<BTreeMap<String, Value>>>,
    _serving: JoinSet<()>,
}

#[derive(Clone)]
struct Shared {
    mood: watch::Receiver<Mood>,
    taken: Arc<Mutex<BTreeMap<String, Value>>>,
}

impl Provider {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (mood, receiver) = watch::channel(Mood::Fine);
        let taken = Arc::default();
        let shared = Shared { mood: receiver, taken: Arc::clone(&taken) };
        let router = Router::new().route("/charges", post(charge)).route("/refunds", post(refund)).with_state(shared);
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, mood, taken, _serving: serving }
    }

    pub(crate) fn is(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// The number of charges that it took, each token counted once.
    pub(crate) fn taken(&self) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

async fn charge(State(mut shared): State<Shared>, headers: HeaderMap, body: String) -> Response {
    let charge: Value = serde_json::from_str(&body).unwrap();
    let token = headers["idempotency-key"].to_str().unwrap().to_owned();
    let mood = *shared.mood.wait_for(|mood| *mood != Mood::Silent).await.unwrap();
    match mood {
        Mood::Away => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Mood::Nonsense => "what?".into_response(),
        Mood::Declines => (StatusCode::PAYMENT_REQUIRED, json!({ "reason": "no cover" }).to_string()).into_response(),
        Mood::Fine | Mood::Silent => {
            let answer = json!({ "id": token, "order": charge["order"], "amount": charge["amount"] });
            shared.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(token, charge);
            answer.to_string().into_response()
        }
    }
}

async fn refund(body: String) -> Response {
    let asked: Value = serde_json::from_str(&body).unwrap();
    json!({ "order": asked["order"] }).to_string().into_response()
}
