//! `dlq:edit`: a dead letter is replaced by a message of its own with another payload.
//! In: the letter's id, the new payload from a file, standard input or an editor. Out: a recorded command and its
//! progress.

use std::io::Read;
use std::process::Command;
use std::time::Duration;

use clap::Args;
use perkey::unstable::clock::Clock;
use perkey::unstable::handler::is_between_keys;
use perkey::unstable::handlers::{PayloadError, Shown};
use perkey::unstable::store::DeadLetter;
use perkey::unstable::store::query::{DeadFilter, OperatorAction};
use perkey::{Handlers, Payload, Settings};

use super::output::Out;
use super::{Ended, Failure, dlq, handlers, open_beside};

/// The dead letter to edit, and how.
#[derive(Args, Debug)]
pub struct EditArgs {
    /// Its message's id
    #[arg(value_name = "ID")]
    pub id: String,
    /// Its service, if the id alone is ambiguous
    #[arg(long)]
    pub service: Option<String>,
    /// Its key, if the id alone is ambiguous
    #[arg(long)]
    pub key: Option<String>,
    /// File with the new payload, - for standard input [default: the old one as changed in EDITOR]
    #[arg(long, value_name = "FILE")]
    pub payload: Option<String>,
    /// The reason; kept with the command
    #[arg(long, default_value = "")]
    pub reason: String,
    /// The longest time to wait until it is done
    #[arg(long, default_value = "10s", value_parser = perkey::unstable::settings::duration)]
    pub wait: Duration,
}

/// Asks the owner of a dead letter to run it with another payload.
pub async fn edit(settings: &Settings, asked: &EditArgs, out: Out) -> Ended {
    let EditArgs { id, service, key, .. } = asked;
    let filter =
        DeadFilter { id: Some(id.clone()), service: service.clone(), key: key.clone(), ..DeadFilter::default() };
    let store = open_beside(settings).await?;
    let mut found = store.queries().peek(filter.clone(), 2).await?;
    let letter = match (found.len(), found.pop()) {
        (1, Some((_, letter))) => letter,
        (0, _) => return Err(Failure::Usage(format!("there is no dead letter with the id {id:?}"))),
        _ => {
            let text = format!("more than one dead letter has the id {id:?}: say which with --service and --key");
            return Err(Failure::Usage(text));
        }
    };
    let handlers = handlers(settings)?;
    let json = match &asked.payload {
        Some(file) => read(file)?,
        None => edited(&as_text(handlers.shown(&letter.service, &letter.message))?)?,
    };
    let payload = checked(&handlers, &letter, json)?;
    let filter = DeadFilter { service: Some(letter.service.to_string()), ..filter };
    // An edit with an id of its own each time: the same payload may be tried again.
    let scope = [format!("{id}\0{}\0", Clock::system().now()).as_bytes(), &payload[..]].concat();
    let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &scope).to_string();
    let action = OperatorAction::Edit { payload: payload.into(), id };
    dlq::command(settings, action, filter, &asked.reason, asked.wait, out).await
}

/// The payload as text for an editor, without loss.
fn as_text(payload: Shown) -> Result<String, Failure> {
    match payload {
        Shown::Text(text) => Ok(text),
        Shown::Decoded(json) => Ok(format!("{json:#}\n")),
        Shown::Base64(_) => {
            let text = "the payload is neither text nor anything that its service decodes: name a file with the new one \
                        as JSON (--payload FILE), or replay or discard the dead letter";
            Err(Failure::Usage(text.to_owned()))
        }
    }
}

/// The payload for `json`, encoded as the letter's was: one that its handler understands, and under the same key, as it
/// takes the letter's place there.
fn checked(handlers: &Handlers, letter: &DeadLetter, json: String) -> Result<Vec<u8>, Failure> {
    let (service, key, message) = (&letter.service, &letter.key, &letter.message);
    let unfit = |error: PayloadError| Failure::Usage(format!("{service} does not understand the payload: {error}"));
    if is_between_keys(message) {
        let text = "another key asked or answered this message, and would not know of the change: replay or discard it";
        return Err(Failure::Usage(text.to_owned()));
    }
    let (payload, _) = handlers.written(service, json.into_bytes(), Some(message)).map_err(unfit)?;
    if payload == message.payload() {
        return Err(Failure::Usage("the payload is as it was: use dlq:replay to run it again".to_owned()));
    }
    let content_type = Payload::from(message).content_type();
    let found = handlers.key_of(service, Payload::new(&payload, message.kind(), content_type)).map_err(unfit)?;
    if found.as_str() == &**key {
        return Ok(payload);
    }
    let text = format!(
        "the payload is of key {:?}, the dead letter of {key:?}: send it as a message of its own",
        found.as_str()
    );
    Err(Failure::Usage(text))
}

fn read(file: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let read = match file {
        "-" => std::io::stdin().read_to_string(&mut text).map(drop),
        path => std::fs::read_to_string(path).map(|read| text = read),
    };
    read.map_err(|error| Failure::Failed(format!("cannot read {file}: {error}")))?;
    Ok(text.trim_start_matches('\u{feff}').trim_end().to_owned())
}

/// The payload after the operator's editor.
fn edited(payload: &str) -> Result<String, Failure> {
    let editor = ["VISUAL", "EDITOR"].iter().find_map(|name| std::env::var(name).ok().filter(|name| !name.is_empty()));
    let editor = editor.ok_or_else(|| {
        Failure::Usage("set EDITOR, or name the file with the new payload: --payload FILE (- reads it)".to_owned())
    })?;
    let failed = |error: std::io::Error| Failure::Failed(format!("cannot edit the payload: {error}"));
    let file = tempfile::Builder::new().suffix(".json").tempfile().map_err(failed)?;
    std::fs::write(file.path(), payload).map_err(failed)?;
    // Run by a shell, as other programs do it: the variable may hold arguments, too.
    let status = Command::new("sh").args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(file.path()).status();
    if !status.map_err(failed)?.success() {
        return Err(Failure::Failed(format!("the editor ({editor}) failed: nothing was changed")));
    }
    std::fs::read_to_string(file.path()).map(|text| text.trim_end().to_owned()).map_err(failed)
}
