//! Appends batches to the embedded log, and records the progress with them.
//! In: batches. Out: rows that a shard's owner reads; refused lines in their file.

use std::sync::Arc;
use std::time::Duration;

use perkey::unstable::clock::{Clock, Stopwatch};
use perkey::unstable::store::append::{LOOK_EVERY, Room, Targets, patiently, targets};
use perkey::unstable::store::query::{ImportBatch, ImportProgress};
use perkey::unstable::store::{self, Store};
use perkey::{Settings, sleep};
use tokio::sync::mpsc::Receiver;

use super::bar::Bar;
use super::lines::End;
use super::reader::{Batch, Read};
use super::rejects::Rejects;
use crate::operator::cli::{Failure, runner};

/// The reason why an import of a changed file does not continue by itself.
const CHANGED: &str = "the lines imported before have changed since: nothing was imported. Is this another file of the same \
    name, it needs a name of its own: --source NAME. Is it the same, changed: with --from-start all lines are \
    read again; those that are unchanged are dropped as repeats only while their ids are remembered (dedup.window and \
    dedup.max_ids), so import what is new from a file of its own when the first import is older";

/// The time after which a wait for room is explained.
const SAY_AFTER: Duration = Duration::from_secs(5);

/// Appends the batches of a reader.
pub struct Append<'a> {
    store: &'a dyn Store,
    settings: &'a Settings,
    service: Arc<str>,
    source: String,
    progress: ImportProgress,
    rejects: Rejects,
    room: Room,
    /// The number of messages appended by this run.
    pub appended: u64,
    /// The number of messages that an earlier run had appended, of lines that were not read again.
    pub skipped: u64,
    /// The progress bar.
    pub bar: Bar,
}

impl<'a> Append<'a> {
    /// Continues from `progress`.
    pub fn new(
        store: &'a dyn Store,
        settings: &'a Settings,
        service: Arc<str>,
        source: String,
        progress: ImportProgress,
        rejects: Rejects,
        bar: Bar,
    ) -> Self {
        let skipped = progress.messages;
        let room = Room::new(settings.log.max_unread, settings.ownership.shards);
        Self { store, settings, service, source, progress, rejects, room, appended: 0, skipped, bar }
    }

    /// Appends until the input ends; returns the line and the end of the record that it left there, if it did.
    pub async fn run(&mut self, told: &mut Receiver<Read>) -> Result<Option<(u64, End)>, Failure> {
        while let Some(read) = told.recv().await {
            match read {
                Read::GoesOn(bytes) => {
                    let lines = self.progress.lines;
                    self.bar.say(&format!("{lines} lines were imported before; going on after them"));
                    self.bar.skip(bytes);
                }
                Read::Changed => {
                    return Err(Failure::Failed(CHANGED.to_owned()));
                }
                Read::Batch(batch) => self.batch(batch).await?,
                Read::End => return Ok(None),
                Read::Cut(line, end) => return Ok(Some((line, end))),
                Read::Failed(reason) => return Err(Failure::Failed(reason)),
            }
        }
        Err(Failure::Failed("the reader ended without a word".to_owned()))
    }

    /// The progress of the import.
    pub fn progress(&self) -> &ImportProgress {
        &self.progress
    }

    /// The file of refused lines.
    pub fn rejects(&self) -> &Rejects {
        &self.rejects
    }

    async fn batch(&mut self, batch: Batch) -> Result<(), Failure> {
        self.rejects.add(&batch.rejects).map_err(|error| self.refused(&error))?;
        let wanted = targets(&batch.rows);
        self.wait_for_room(&wanted).await?;
        let progress = ImportProgress {
            lines: batch.lines,
            messages: self.progress.messages + batch.messages,
            rejects: self.progress.rejects + batch.rejects.len() as u64,
            rejects_bytes: self.rejects.bytes(),
            lines_hash: batch.hash,
        };
        let rows = ImportBatch {
            service: Arc::clone(&self.service),
            source: self.source.clone(),
            rows: batch.rows,
            progress: progress.clone(),
            at: Clock::system().now(),
        };
        patiently(|| self.store.queries().append_import(rows.clone())).await?;
        self.progress = progress;
        self.room.used(&wanted);
        self.appended += batch.messages;
        self.bar.at(batch.bytes, batch.messages);
        Ok(())
    }

    async fn wait_for_room(&mut self, wanted: &Targets) -> Result<(), Failure> {
        let since = Stopwatch::start();
        let mut said = false;
        while !self.room.is_there(self.store.queries(), wanted).await? {
            if !said && since.elapsed() >= SAY_AFTER && !store::is_running(self.settings).await {
                said = true;
                let runner = runner(self.settings);
                self.bar.say(&format!("log.max_unread is reached and no process runs the store: start `{runner}`"));
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    fn refused(&self, error: &std::io::Error) -> Failure {
        Failure::Failed(format!("cannot write the refused lines to {}: {error}", self.rejects.path().display()))
    }
}
