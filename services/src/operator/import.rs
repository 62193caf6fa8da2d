//! `import`: a file's lines become messages, each once, however often the import is killed or repeated.
//! In: CSV or NDJSON. Out: rows in the embedded log, handled by the process that runs the store, or by this one.

pub mod amounts;
pub mod append;
pub mod args;
pub mod bar;
pub mod conflicts;
pub mod ids;
pub mod lines;
pub mod look;
pub mod reader;
pub mod record;
pub mod rejects;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use perkey::unstable::clock::{Clock, Stopwatch};
use perkey::unstable::engine::host::Signals;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::query::ImportProgress;
use perkey::unstable::store::{self, Access, Opened, Store};
use perkey::{Engine, Millis, Settings, StoreError, sleep};
use serde::Serialize;
use tokio::sync::mpsc;

use self::append::Append;
use self::args::ImportArgs;
use self::bar::{Bar, rate};
use self::conflicts::Conflict;
use self::lines::End;
use self::reader::{Input, Plan, Read};
use self::rejects::{Owner, Rejects};
use crate::operator::cli::output::{Out, complain};
use crate::operator::cli::status::Totals;
use crate::operator::cli::up::leave;
use crate::operator::cli::{Done, Ended, Failure, handlers, open_beside};

/// The most batches between the reader and the log.
const BATCHES_AHEAD: usize = 4;
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The time for a process that just started to prepare its store.
const PREPARED_WITHIN: Duration = Duration::from_secs(5);

/// The result of an import.
#[derive(Debug, Serialize)]
struct Summary {
    service: String,
    source: String,
    /// The number of lines read by this run and earlier ones.
    lines: u64,
    /// The number of messages appended by this run.
    imported: u64,
    /// The number of messages that an earlier run had appended.
    skipped: u64,
    /// The number of lines refused by this run and earlier ones.
    rejected: u64,
    rejects_file: Option<PathBuf>,
    /// Lines that were handled and not posted: their ids were taken before with other content.
    conflicts: Vec<Conflict>,
    /// The line of the record without an end, if the input ends so: it is left for the next run.
    unfinished_line: Option<u64>,
    seconds: f64,
    messages_per_second: f64,
    /// The work of this process's own engine; null when another process runs the store.
    engine: Option<Handled>,
}

#[derive(Debug, Serialize)]
struct Handled {
    duplicates: u64,
    dead_letters: u64,
    waiting: u64,
}

/// Imports a file.
pub async fn import(settings: &Settings, asked: &ImportArgs, out: Out) -> Ended {
    let mut signals = Signals::take()?;
    let services = handlers(settings)?.services();
    if !services.iter().any(|service| **service == asked.service) {
        let text = format!("there is no service {:?}; there are {}", asked.service, services.join(", "));
        return Err(Failure::Usage(text));
    }
    let (input, bytes) = input(&asked.file)?;
    let source = asked.source.clone().unwrap_or_else(|| name(&input));
    let (store, engine) = open(settings).await?;
    let engine = if engine {
        Some(Engine::start(settings, handlers(settings)?, store.store(), Metrics::new()).await?)
    } else {
        None
    };
    let mut import = Import { settings, asked, input, source, bytes };
    let ended = import.run(&*store, engine.as_ref(), &mut signals, out).await;
    match engine {
        Some(engine) => leave(engine, &mut signals).await.and(ended),
        None => ended,
    }
}

/// The store, and whether this process must run it. A store that workers share is left to them.
async fn open(settings: &Settings) -> Result<(Opened, bool), Failure> {
    if !store::is_shared(settings) && !store::is_running(settings).await {
        match store::open(settings, Access::Run).await {
            Ok(store) => return Ok((store, true)),
            // Another process came first after all.
            Err(StoreError::Locked(_)) => (),
            Err(error) => return Err(error.into()),
        }
    }
    let (store, recorded) = open_prepared(settings).await?;
    let wanted = settings.ownership.shards;
    if recorded == wanted { Ok((store, false)) } else { Err(StoreError::Shards { recorded, wanted }.into()) }
}

/// A store that another process runs, and its number of shards; that process may still be preparing it.
async fn open_prepared(settings: &Settings) -> Result<(Opened, u32), Failure> {
    let since = Stopwatch::start();
    loop {
        let patient = since.elapsed() < PREPARED_WITHIN;
        match open_beside(settings).await {
            Err(Failure::Store(_)) if patient => (),
            Err(failure) => return Err(failure),
            Ok(store) => {
                let recorded = store.queries().shards().await?.len();
                if recorded > 0 || !patient {
                    return Ok((store, u32::try_from(recorded).unwrap_or(u32::MAX)));
                }
                store.close().await;
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The input, and its number of bytes if that is known.
fn input(file: &str) -> Result<(Input, Option<u64>), Failure> {
    if file == "-" {
        return Ok((Input::Stdin, None));
    }
    let path = PathBuf::from(file);
    let found = std::fs::metadata(&path);
    let found = found.map_err(|error| Failure::Failed(format!("cannot read {}: {error}", path.display())))?;
    Ok(if found.is_file() { (Input::File(path), Some(found.len())) } else { (Input::Stream(path), None) })
}

/// The name of an input whose source nobody named. The name of a pipe (`/dev/fd/63`) says nothing about its contents.
fn name(input: &Input) -> String {
    match input {
        Input::Stdin | Input::Stream(_) => "stdin".to_owned(),
        Input::File(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
    }
}

struct Import<'a> {
    settings: &'a Settings,
    asked: &'a ImportArgs,
    input: Input,
    source: String,
    bytes: Option<u64>,
}

impl Import<'_> {
    async fn run(&mut self, store: &dyn Store, engine: Option<&Engine>, signals: &mut Signals, out: Out) -> Ended {
        let before = Totals::of(&store.queries().shards().await?);
        let progress = self.progress(store).await?;
        // A run that continues, or reads the lines of earlier runs again, reports their conflicts, too.
        let since = (progress.lines == 0 && !self.asked.from_start).then(|| Clock::system().now());
        let rejects = self.rejects(progress.rejects_bytes)?;
        let mut told = self.start_reading(&progress)?;
        let (service, source) = (self.asked.service.as_str().into(), self.source.clone());
        let bar = Bar::new(self.bytes);
        let mut append = Append::new(store, self.settings, service, source, progress, rejects, bar);
        let work = async {
            let cut = append.run(&mut told).await?;
            if let Some(engine) = engine {
                handle(engine, store, &append.bar).await?;
            }
            Ok(Some(cut))
        };
        let failed = async {
            match engine {
                Some(engine) => engine.failed().await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = work => ended,
            reason = failed => Err(Failure::Failed(format!("the engine gave up: {reason}"))),
            () = signals.next() => Ok(None),
        };
        append.bar.end();
        let ended = ended?;
        let cut = ended.flatten();
        let after = Totals::of(&store.queries().shards().await?);
        let conflicts = self.conflicts(store, since, &before, &after).await?;
        let handled = engine.is_some().then(|| handled(&before, &after));
        let unfinished_line = cut.map(|(line, _)| line);
        let summary = Summary { unfinished_line, conflicts, ..self.summary(&append, handled) };
        out.show(&summary, text)?;
        if ended.is_none() {
            complain("interrupted; the same command goes on from here");
            return Ok(Done::Interrupted);
        }
        if let Some((line, end)) = cut {
            complain(&unfinished(line, end));
        }
        // A header alone counts as an empty file.
        Ok(match summary.imported + summary.skipped + summary.rejected {
            0 if cut.is_none() => Done::NothingFound,
            _ if summary.rejected > 0 || cut.is_some() || !summary.conflicts.is_empty() => Done::SomeRefused,
            _ => Done::All,
        })
    }

    /// Lines whose ids were taken before with other content, as far as they are handled by now.
    async fn conflicts(
        &self,
        store: &dyn Store,
        since: Option<Millis>,
        before: &Totals,
        after: &Totals,
    ) -> Result<Vec<Conflict>, StoreError> {
        let count = |totals: &Totals| totals.counter("conflicts");
        // Looking through all dead letters may take a while.
        if count(after) == if since.is_some() { count(before) } else { 0 } {
            return Ok(Vec::new());
        }
        conflicts::found(store, &self.asked.service, &self.source, since).await
    }

    /// The progress of an earlier run of this import. An input that can be read only once cannot be compared with the
    /// earlier one.
    async fn progress(&self, store: &dyn Store) -> Result<ImportProgress, Failure> {
        if self.asked.from_start || !matches!(self.input, Input::File(_)) {
            return Ok(ImportProgress::default());
        }
        Ok(store.queries().import_progress(self.asked.service.clone(), self.source.clone()).await?)
    }

    fn start_reading(&self, progress: &ImportProgress) -> Result<mpsc::Receiver<Read>, Failure> {
        let plan = Plan {
            input: self.input.clone(),
            format: self.asked.format,
            service: self.asked.service.as_str().into(),
            source: self.source.clone(),
            shards: self.settings.ownership.shards,
            longest: self.settings.ingress.message_bytes_max,
            done: (progress.lines > 0).then(|| (progress.lines, progress.lines_hash.clone())),
            amounts: self.asked.amounts,
            complete: self.asked.complete,
        };
        let (tell, told) = mpsc::channel(BATCHES_AHEAD);
        // A thread, not a task: reading standard input cannot be cut short, and must not keep the process from ending.
        let thread = std::thread::Builder::new().name("import".to_owned());
        let handlers = handlers(self.settings)?;
        let read = move || reader::read(plan, &handlers, &tell);
        thread.spawn(read).map_err(|error| Failure::Failed(format!("cannot start a thread: {error}")))?;
        Ok(told)
    }

    /// The file of refused lines: the one that was named, or one of the source's own, beside the input or, if that has
    /// no folder, in the working directory.
    fn rejects(&self, keep: u64) -> Result<Rejects, Failure> {
        let (service, source) = (&self.asked.service, &self.source);
        let folder = match &self.input {
            Input::File(path) => path.parent().map(Path::to_owned).unwrap_or_default(),
            Input::Stdin | Input::Stream(_) => PathBuf::new(),
        };
        let plain = source.replace(|c: char| c == '/' || c.is_control(), "_");
        let places = match &self.asked.rejects {
            Some(path) => vec![PathBuf::from(path)],
            None => [format!("{plain}.rejects.ndjson"), format!("{plain}.{service}.rejects.ndjson")]
                .map(|name| folder.join(name))
                .to_vec(),
        };
        let owner = Owner { service: service.clone(), source: source.clone() };
        Rejects::open(places, owner, keep).map_err(|(path, error)| {
            let path = path.display();
            Failure::Failed(format!("cannot write {path}: {error}; name another file with --rejects FILE"))
        })
    }

    fn summary(&self, append: &Append<'_>, engine: Option<Handled>) -> Summary {
        let elapsed = append.bar.elapsed();
        let progress = append.progress();
        Summary {
            service: self.asked.service.clone(),
            source: self.source.clone(),
            lines: progress.lines,
            imported: append.appended,
            skipped: append.skipped,
            rejected: progress.rejects,
            rejects_file: (progress.rejects > 0).then(|| append.rejects().path().to_owned()),
            conflicts: Vec::new(),
            unfinished_line: None,
            seconds: elapsed.as_secs_f64(),
            messages_per_second: rate(append.appended, elapsed),
            engine,
        }
    }
}

/// Waits until this process's engine has handled everything.
async fn handle(engine: &Engine, store: &dyn Store, bar: &Bar) -> Result<(), Failure> {
    let mut idle = pin!(engine.idle());
    loop {
        tokio::select! {
            () = &mut idle => return Ok(()),
            () = sleep(LOOK_EVERY) => bar.handling(store.queries().unread_imports().await?),
        }
    }
}

/// The message about a record without an end.
fn unfinished(line: u64, end: End) -> String {
    match end {
        End::OpenQuote => format!(
            "a quote that is opened in line {line} or behind it is not closed until the end of the file: nothing from line \
             {line} on was imported. Close it, or remove it, and run the same command again"
        ),
        End::Line | End::Input => format!(
            "line {line} has no line end, so it may not be whole: it is left for the next run. When the file is complete, end \
             the line, or say --complete"
        ),
    }
}

fn handled(before: &Totals, after: &Totals) -> Handled {
    Handled {
        duplicates: after.counter("duplicates").saturating_sub(before.counter("duplicates")),
        dead_letters: after.dead_letters.saturating_sub(before.dead_letters),
        waiting: after.pending,
    }
}

fn text(summary: &Summary) -> String {
    let Summary { service, source, lines, imported, skipped, rejected, .. } = summary;
    let mut text = format!(
        "{service} from {source}: {lines} lines, {imported} imported, {skipped} imported before, {rejected} refused"
    );
    if let Some(file) = &summary.rejects_file {
        text.push_str(&format!("\nrefused lines are in {}", file.display()));
    }
    let (seconds, rate) = (summary.seconds, summary.messages_per_second);
    match &summary.engine {
        Some(Handled { duplicates, dead_letters, waiting }) => text.push_str(&format!(
            "\nhandled in {seconds:.1} s ({rate:.0} messages/s): duplicates dropped {duplicates}, dead letters \
             {dead_letters}, waiting {waiting}"
        )),
        None => text.push_str(&format!(
            "\nappended in {seconds:.1} s ({rate:.0} messages/s); the process that runs the store handles them"
        )),
    }
    text.push_str(&conflicts::text(&summary.conflicts));
    text
}
