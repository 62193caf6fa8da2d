//! The interface of a payment provider, and its client over HTTP: `POST /charges` and `POST /refunds`, each with an
//! `Idempotency-Key`.
//! In: a charge or an order to refund, a token. Out: the provider's answer, or the reason why there is none.

use std::time::Duration;

use perkey::Fault;
use reqwest::redirect::Policy;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Charge;
use crate::money::Cents;
use crate::names::OrderId;
use crate::texts;

/// The provider's name among the dependencies of `payments`.
pub const PROVIDER: &str = "payment_provider";

/// The most bytes of an answer: it has an id and an amount, or a reason.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A payment provider. A call with a token that the provider has seen before gets the answer of the first call.
pub trait PaymentProvider: Send + Sync + 'static {
    /// Takes the money; returns what was taken, or the reason why it was declined.
    fn charge(
        &self,
        token: Uuid,
        charge: &Charge,
    ) -> impl Future<Output = Result<ProviderAnswer, ProviderError>> + Send;

    /// Gives back whatever was taken for an order, and closes the order for further charges; returns the order's id.
    fn refund(&self, token: Uuid, order: &OrderId) -> impl Future<Output = Result<OrderId, ProviderError>> + Send;
}

/// The provider's answer to a charge; it must be compared with the request before it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderAnswer {
    /// The money was taken.
    Charged {
        /// The provider's id of the charge.
        id: String,
        /// The order.
        order: OrderId,
        /// The amount.
        amount: Cents,
    },
    /// The provider declined the charge.
    Declined {
        /// The reason.
        reason: String,
    },
}

/// A client for a provider that speaks HTTP.
#[derive(Clone, Debug)]
pub struct Provider {
    http: reqwest::Client,
    /// The base URL, without a slash at its end; empty if there is no provider.
    url: String,
}

/// Reasons why a call to the provider failed.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The provider does not answer, or says that it cannot work now. It is not known whether the call took effect.
    #[error("the payment provider is not available: {0}")]
    Unavailable(String),
    /// The provider does not understand the request, or refuses it.
    #[error("the payment provider refuses the request: {0}")]
    Refused(String),
    /// The answer does not belong to the request.
    #[error("the payment provider's answer makes no sense: {0}")]
    Nonsense(String),
}

impl ProviderError {
    /// The fault with which the turn that called the provider ends.
    pub fn fault(self) -> Fault {
        match self {
            Self::Unavailable(reason) => Fault::unavailable(PROVIDER, reason),
            Self::Refused(_) => Fault::reject(self),
            Self::Nonsense(_) => Fault::retry(self),
        }
    }
}

/// The provider's answer to a charge.
#[derive(Deserialize)]
struct Charged {
    id: String,
    order: OrderId,
    amount: Cents,
}

/// The provider's answer to a refund.
#[derive(Deserialize)]
struct Refunded {
    order: OrderId,
}

/// The provider's answer when it declines.
#[derive(Deserialize)]
struct Declined {
    reason: String,
}

impl Provider {
    /// The provider at `url` (`https://host/path`; empty: there is none), which must answer within `timeout`.
    pub fn new(url: &str, timeout: Duration) -> Result<Self, String> {
        if !url.is_empty() {
            reqwest::Url::parse(url).map_err(|error| format!("{url:?} is not a URL: {error}"))?;
        }
        // No redirects: whatever they point at was never configured to take money.
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

/// Reads an answer. One that is cut short counts as no answer; one that is something else, or too long, is nonsense.
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
