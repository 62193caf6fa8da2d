//! `call`: an operation at a front door, which takes effect once however often it has to be sent.
//! In: a method, a path, a body. Out: the final answer, or the reason why there is none.

use std::time::Duration;

use clap::Args;
use perkey::Settings;
use perkey_client::{Answer, CallError, Client, Last, Operation, Options};
use serde::Serialize;
use serde_json::Value;

use super::output::Out;
use super::{Done, Ended, Failure};

/// The operation to call, and its options.
#[derive(Args, Debug)]
pub struct CallArgs {
    /// GET, POST, PUT, PATCH or DELETE
    pub method: String,
    /// The path: /api/transactions
    pub path: String,
    /// The body as JSON; - reads standard input
    pub body: Option<String>,
    /// The idempotency key, such as that of an earlier call [default: a new one]
    #[arg(long)]
    pub key: Option<String>,
    /// The front door [default: that of the settings, gateway.listen]
    #[arg(long)]
    pub url: Option<String>,
    /// The bearer token
    #[arg(long, env = "PERKEY_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The time for the call, with all its retries
    #[arg(long, default_value = "30s", value_parser = perkey::unstable::settings::duration)]
    pub deadline: Duration,
}

/// The result of the call.
#[derive(Debug, Serialize)]
struct Shown {
    status: u16,
    replayed: bool,
    key: Option<String>,
    location: Option<String>,
    attempts: u32,
    body: Value,
}

/// Calls, and shows the answer.
pub async fn call(settings: &Settings, asked: CallArgs, out: Out) -> Ended {
    let url = asked.url.clone().unwrap_or_else(|| door(settings));
    let options = Options { token: asked.token.clone(), deadline: asked.deadline, ..Options::default() };
    let client = Client::new(&url, options).map_err(usage)?;
    let answer = client.call(operation(&asked)?).await.map_err(|error| failure(error, &url))?;
    let done = done(&answer);
    let body = answer.json().unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&answer.body).into_owned()));
    let Answer { status, replayed, key, location, attempts, .. } = answer;
    out.show(&Shown { status, replayed, key, location, attempts, body }, text)?;
    done
}

/// The front door of a process with these settings on this machine.
fn door(settings: &Settings) -> String {
    let scheme = if settings.gateway.tls_cert.is_empty() { "http" } else { "https" };
    let listen = settings.gateway.listen.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]");
    format!("{scheme}://{listen}")
}

fn operation(asked: &CallArgs) -> Result<Operation, Failure> {
    let text = match asked.body.as_deref() {
        Some("-") => Some(std::io::read_to_string(std::io::stdin()).map_err(Failure::failed)?),
        body => body.map(str::to_owned),
    };
    let json = text.map(|text| serde_json::from_str(text.trim_start_matches('\u{feff}'))).transpose();
    let json = json.map_err(|error| Failure::Usage(format!("the body is not JSON: {error}")))?;
    let operation = Operation::new(&asked.method, &asked.path, json).map_err(usage)?;
    match &asked.key {
        Some(key) => operation.key(key).map_err(usage),
        None => Ok(operation),
    }
}

fn usage(error: CallError) -> Failure {
    Failure::Usage(error.to_string())
}

fn failure(error: CallError, url: &str) -> Failure {
    match error {
        CallError::Invalid(_) => usage(error),
        CallError::Deadline { last: Last::NoConnection(_), .. } => {
            Failure::Store(format!("{url}: {error}\nstart it with budget-manager up, or name another one with --url"))
        }
        CallError::Deadline { .. } | CallError::Budget { .. } => {
            Failure::Failed(format!("{error}\nwhether it took effect is not known: call again with the same --key"))
        }
        CallError::TooLarge { .. } => Failure::failed(error),
    }
}

/// The meaning of an answer for a script.
fn done(answer: &Answer) -> Ended {
    match answer.status {
        404 => Ok(Done::NothingFound),
        400..=499 => Ok(Done::SomeRefused),
        _ if answer.is_success() => Ok(Done::All),
        status => Err(Failure::Failed(format!("the call failed for good: status {status}"))),
    }
}

fn text(shown: &Shown) -> String {
    let how = if shown.replayed { "replayed: it had been answered before" } else { "new" };
    let key = shown.key.as_ref().map(|key| format!(", key {key}")).unwrap_or_default();
    let attempts = if shown.attempts > 1 { format!(", {} attempts", shown.attempts) } else { String::new() };
    let head = if shown.key.is_some() { format!(" ({how}{key}{attempts})") } else { String::new() };
    let body = match &shown.body {
        Value::String(text) => text.clone(),
        body => format!("{body:#}"),
    };
    format!("{}{head}\n{body}", shown.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16) -> Answer {
        Answer { status, replayed: false, location: None, key: None, attempts: 1, body: Vec::new() }
    }

    #[test]
    fn a_script_can_tell_how_it_ended() {
        assert_eq!(done(&answer(201)), Ok(Done::All));
        assert_eq!(done(&answer(422)), Ok(Done::SomeRefused));
        assert_eq!(done(&answer(404)), Ok(Done::NothingFound));
        assert_eq!(done(&answer(500)).unwrap_err().code(), 1);
        let deadline = |last| CallError::Deadline { deadline: Duration::ZERO, attempts: 2, key: None, last };
        assert_eq!(failure(deadline(Last::NoConnection("refused".to_owned())), "http://h").code(), 4);
        assert_eq!(failure(deadline(Last::Lost("cut".to_owned())), "http://h").code(), 1);
        assert_eq!(failure(CallError::Invalid("x".to_owned()), "http://h").code(), 64);
    }

    #[test]
    fn the_door_is_that_of_the_settings_as_this_machine_reaches_it() {
        let mut settings = Settings::default();
        assert_eq!(door(&settings), "http://127.0.0.1:8080");
        settings.gateway.listen = "0.0.0.0:443".to_owned();
        settings.gateway.tls_cert = "cert.pem".to_owned();
        assert_eq!(door(&settings), "https://127.0.0.1:443");
    }
}
