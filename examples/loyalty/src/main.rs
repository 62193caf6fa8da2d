//! The program `loyalty`: lines in, accounts out.
//! In: `load FILE`, `load -`, `show MEMBER`, `serve`. Out: lines on standard output, an exit code.

use std::process::ExitCode;

use loyalty::{Message, Points, defaults, handlers};
use perkey::Engine;
use perkey::host::{Failure, Host, Running};
use perkey::serde_json;
use perkey::tokio::fs::File;
use perkey::tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader, stdin};
use serde::Deserialize;

const ABOUT: &str = "Arguments:
  load FILE     sends the lines of a file, or of standard input (-), and waits until they are handled
  show MEMBER   shows the account of a member
  serve         handles what is there, and what timers bring, until it is told to stop";

/// Lines that are sent together.
const BATCH: usize = 500;

/// A line: a message and its id.
#[derive(Deserialize)]
struct Line {
    id: String,
    #[serde(flatten)]
    message: Message,
}

fn main() -> ExitCode {
    Host::new("loyalty").about(ABOUT).settings(defaults).handlers_from(handlers).run(work)
}

async fn work(running: Running) -> Result<(), Failure> {
    let engine = running.engine;
    let arguments: Vec<_> = running.arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["load", "-"] => load(&engine, BufReader::new(stdin())).await,
        ["load", file] => {
            let opened = File::open(file).await.map_err(|error| Failure::Failed(format!("{file}: {error}")))?;
            load(&engine, BufReader::new(opened)).await
        }
        ["show", member] => show(&engine, member).await,
        ["serve"] => std::future::pending().await,
        _ => Err(Failure::Usage("load FILE, load -, show MEMBER or serve; see --help".to_owned())),
    }
}

async fn load(engine: &Engine, input: impl AsyncBufRead + Unpin) -> Result<(), Failure> {
    let (mut no, mut refused, mut batch) = (0, 0, Vec::new());
    let mut lines = input.lines();
    while let Some(line) = lines.next_line().await? {
        no += 1;
        match serde_json::from_str(&line) {
            Ok(Line { id, message }) => batch.push((id, message)),
            Err(error) => {
                refused += 1;
                eprintln!("line {no}: {error}");
            }
        }
        if batch.len() == BATCH {
            engine.send_all::<Points, _>(std::mem::take(&mut batch)).await?;
        }
    }
    engine.send_all::<Points, _>(batch).await?;
    engine.idle().await;
    println!("{no} lines, {refused} refused");
    if refused == 0 { Ok(()) } else { Err(Failure::Failed(format!("{refused} lines are no messages"))) }
}

async fn show(engine: &Engine, member: &str) -> Result<(), Failure> {
    engine.idle().await;
    match engine.state::<Points>(member).await? {
        Some(account) => println!("{member}: {} points in {} lots", account.balance(), account.lots.len()),
        None => println!("{member}: no account"),
    }
    Ok(())
}
