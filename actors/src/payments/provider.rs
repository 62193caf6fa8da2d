//! What `payments` needs of a payment provider; and one over HTTP: `POST /charges` and `POST /refunds`, each with an
//! `Idempotency-Key`.
//! In: a charge or an order to refund, a token. Out: the provider's word, or why there is none.

use std::time::Duration;

use perkey::Fault;
use reqwest::redirect::Policy;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Charge;
use crate::money::Cents;
use crate::names::OrderId;
use crate::texts;

/// The provider's name among what `payments` needs.
pub const PROVIDER: &str = "payment_provider";

/// Most bytes of an answer: it has an id and an amount, or a reason.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What `payments` needs of a provider. Whoever asks with a token that was there before gets the answer of then.
pub trait PaymentProvider: Send + Sync + 'static {
    /// Takes the money; says what it took, or why it will not.
    fn charge(
        &self,
        token: Uuid,
        charge: &Charge,
    ) -> impl Future<Output = Result<ProviderAnswer, ProviderError>> + Send;

    /// Gives back whatever was taken for an order, and takes nothing for it any more; says of which order.
    fn refund(&self, token: Uuid, order: &OrderId) -> impl Future<Output = Result<OrderId, ProviderError>> + Send;
}

/// What a provider says to a charge; not to be believed before it was compared with what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderAnswer {
    /// The money was taken.
    Charged {
        /// The provider's id of it.
        id: String,
        /// The order.
        order: OrderId,
        /// How much.
        amount: Cents,
    },
    /// It says no.
    Declined {
        /// Why.
        reason: String,
    },
}

/// The line to a provider that speaks HTTP.
#[derive(Clone, Debug)]
pub struct Provider {
    http: reqwest::Client,
    /// Without a slash at its end; empty where there is no provider.
    url: String,
}

/// Why the provider did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// It does not answer, or says that it cannot work now. Whether it did something is not known.
    #[error("the payment provider is not available: {0}")]
    Unavailable(String),
    /// It does not understand, or will not.
    #[error("the payment provider refuses the request: {0}")]
    Refused(String),
    /// It answered something else than was asked.
    #[error("the payment provider's answer makes no sense: {0}")]
    Nonsense(String),
}

impl ProviderError {
    /// What the turn that met it answers.
    pub fn fault(self) -> Fault {
        match self {
            Self::Unavailable(reason) => Fault::unavailable(PROVIDER, reason),
            Self::Refused(_) => Fault::reject(self),
            Self::Nonsense(_) => Fault::retry(self),
        }
    }
}

/// What the provider answers to a charge.
#[derive(Deserialize)]
struct Charged {
    id: String,
    order: OrderId,
    amount: Cents,
}

/// What it answers to a refund.
#[derive(Deserialize)]
struct Refunded {
    order: OrderId,
}

/// What it answers when it says no.
#[derive(Deserialize)]
struct Declined {
    reason: String,
}

impl Provider {
    /// The provider at `url` (`https://host/path`; empty: there is none), which is to answer within `timeout`.
    pub fn new(url: &str, timeout: Duration) -> Result<Self, String> {
        if !url.is_empty() {
            reqwest::Url::parse(url).map_err(|error| format!("{url:?} is no URL: {error}"))?;
        }
        // Whoever it might point at was never told to take money.
        let client = reqwest::Client::builder().timeout(timeout).redirect(Policy::none());
        let http = client.build().map_err(|error| error.to_string())?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned() })
    }

    async fn post(&self, path: &str, token: Uuid, body: &impl Serialize) -> Result<reqwest::Response, ProviderError> {
        if self.url.is_empty() {
            let how = "none is configured: set app.provider_url";
            return Err(ProviderError::Unavailable(how.to_owned()));
        }
        let request = self.http.post(format!("{}/{path}", self.url));
        let answer = request.header("Idempotency-Key", token.to_string()).json(body).send().await;
        let answer = answer.map_err(|error| ProviderError::Unavailable(error.without_url().to_string()))?;
        let status = answer.status();
        // 409: the same request is being worked on; 425 and 429: not now.
        let later = matches!(status.as_u16(), 408 | 409 | 425 | 429);
        match status {
            _ if status.is_success() || status == reqwest::StatusCode::PAYMENT_REQUIRED => Ok(answer),
            _ if status.is_redirection() => Err(ProviderError::Unavailable(format!(
                "{status}: it points elsewhere, which is not followed; set app.provider_url to where it is"
            ))),
            _ if status.is_server_error() || later => Err(ProviderError::Unavailable(status.to_string())),
            _ => Err(ProviderError::Refused(status.to_string())),
        }
    }
}

impl PaymentProvider for Provider {
    async fn charge(&self, token: Uuid, charge: &Charge) -> Result<ProviderAnswer, ProviderError> {
        let answer = self.post("charges", token, charge).await?;
        if answer.status() == reqwest::StatusCode::PAYMENT_REQUIRED {
            let Declined { reason } = read(answer).await?;
            return Ok(ProviderAnswer::Declined { reason });
        }
        let Charged { id, order, amount } = read(answer).await?;
        texts::check("id of the charge", &id).map_err(|error| ProviderError::Nonsense(error.to_string()))?;
        Ok(ProviderAnswer::Charged { id, order, amount })
    }

    async fn refund(&self, token: Uuid, order: &OrderId) -> Result<OrderId, ProviderError> {
        let refunded: Refunded =
            read(self.post("refunds", token, &serde_json::json!({ "order": order })).await?).await?;
        Ok(refunded.order)
    }
}

/// An answer that is cut short is as good as none; one that is something else, or more than an answer can be, is nonsense.
async fn read<T: for<'a> Deserialize<'a>>(mut answer: reqwest::Response) -> Result<T, ProviderError> {
    let mut body = Vec::new();
    let broken = |error: reqwest::Error| ProviderError::Unavailable(error.without_url().to_string());
    while let Some(part) = answer.chunk().await.map_err(broken)? {
        if body.len() + part.len() > ANSWER_BYTES_MAX {
            return Err(ProviderError::Nonsense(format!("it has more than {ANSWER_BYTES_MAX} bytes")));
        }
        body.extend_from_slice(&part);
    }
    serde_json::from_slice(&body).map_err(|error| ProviderError::Nonsense(error.to_string()))
}
