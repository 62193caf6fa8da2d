//! Reads an input on a thread of its own and makes batches of it.
//! In: records. Out: rows for the embedded log, grouped by target shard, and the records that were refused.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::sync::Arc;

use perkey::unstable::clock::Clock;
use perkey::unstable::handlers::PayloadError;
use perkey::unstable::store::LogRow;
use perkey::unstable::store::append::log_rows;
use perkey::{Draft, Handlers, Message, Payload};
use tokio::sync::mpsc::Sender;

use super::amounts::{Amounts, Scale, Seen};
use super::args::ImportFormat;
use super::ids::Ids;
use super::lines::{End, Ends, Line, Lines};
use super::look;
use super::record::{Fields, Format};
use super::rejects::Reject;

/// The number of lines in a batch.
const BATCH_LINES: u64 = 1_000;
/// The approximate bytes of a batch: readers of the log read a whole row at a time.
const BATCH_BYTES: u64 = 4 << 20;
/// The most bytes of a refused line that are shown.
const SHOWN_MAX: usize = 4_096;

/// The origin of lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Standard input: read once.
    Stdin,
    /// A pipe, or another file that is read once.
    Stream(PathBuf),
    /// A file.
    File(PathBuf),
}

impl Input {
    /// Its path, if it has one.
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::Stdin => None,
            Self::Stream(path) | Self::File(path) => Some(path),
        }
    }
}

/// The input to read, and the way to read it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The input.
    pub input: Input,
    /// The format.
    pub format: ImportFormat,
    /// The service that the messages are for.
    pub service: Arc<str>,
    /// The input's name.
    pub source: String,
    /// The number of shards.
    pub shards: u32,
    /// The most bytes of a line, and of a message.
    pub longest: usize,
    /// Lines that an earlier run has done, and the hash over them.
    pub done: Option<(u64, String)>,
    /// The scale of amounts, if it was given.
    pub amounts: Option<Scale>,
    /// True if nothing more will be written behind the input's end, even if its last line has no end.
    pub complete: bool,
}

/// The reports of the thread.
#[derive(Debug)]
pub enum Read {
    /// The lines of an earlier run are unchanged; they have this many bytes.
    GoesOn(u64),
    /// The lines of an earlier run have changed: nothing more is read.
    Changed,
    /// Up to 1,000 more lines.
    Batch(Batch),
    /// The input ended.
    End,
    /// The input ended within the record that begins in this line: it is left for the next run.
    Cut(u64, End),
    /// The input cannot be read.
    Failed(String),
}

/// Some lines.
#[derive(Debug, Default)]
pub struct Batch {
    /// Rows for the log, one per target shard.
    pub rows: Vec<LogRow>,
    /// The number of messages in them.
    pub messages: u64,
    /// Lines that were refused.
    pub rejects: Vec<Reject>,
    /// The number of lines read so far, in all batches together.
    pub lines: u64,
    /// Hash over them.
    pub hash: String,
    /// The number of bytes read so far.
    pub bytes: u64,
}

/// Reads the whole input of `plan` and reports it to `told`; ends early when nobody listens any more.
pub fn read(plan: Plan, handlers: &Handlers, told: &Sender<Read>) {
    let ids = Ids::new(&plan.service, &plan.source);
    let amounts = Amounts::said(plan.amounts);
    let mut reader = Reader { plan, handlers, told, ids, format: None, amounts };
    let last = match reader.run() {
        Ok(None) => Read::End,
        Ok(Some(cut)) => Read::Cut(cut.no, cut.end),
        Err(Stop::Failed(reason)) => Read::Failed(reason),
        Err(Stop::NobodyListens) => return,
    };
    // A listener that has gone knows how the import ended.
    told.blocking_send(last).ok();
}

enum Stop {
    Failed(String),
    NobodyListens,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(format!("cannot read the input: {error}"))
    }
}

struct Reader<'a> {
    plan: Plan,
    handlers: &'a Handlers,
    told: &'a Sender<Read>,
    ids: Ids,
    /// The format, known from the first record on.
    format: Option<Format>,
    amounts: Amounts,
}

type Records = Lines<Box<dyn BufRead>>;

impl Reader<'_> {
    /// Reads the whole input; returns the record that the input ends in, if it was left.
    fn run(&mut self) -> Result<Option<Line>, Stop> {
        if self.plan.amounts.is_none() && matches!(self.plan.input, Input::File(_)) {
            self.amounts = self.scale()?;
            self.format = None;
        }
        let mut lines = self.open()?;
        if let Some((count, hash)) = self.plan.done.clone() {
            if self.skip(&mut lines, count)? && lines.hash() == hash {
                self.tell(Read::GoesOn(lines.bytes()))?;
            } else {
                self.tell(Read::Changed)?;
                return Ok(None);
            }
        }
        let mut text = Vec::new();
        loop {
            if let Some(cut) = self.batch(&mut lines, &mut text)? {
                return Ok(cut);
            }
        }
    }

    /// Looks at all amounts: whole numbers and decimals do not mean the same, and a single amount does not tell which
    /// it is.
    fn scale(&mut self) -> Result<Amounts, Stop> {
        let (mut lines, mut text, mut seen) = (self.open()?, Vec::new(), Seen::default());
        while let Some(line) = self.next(&mut lines, &mut text)? {
            let is_record = self.is_record(line, &text)?;
            // An amount that is cut short says nothing.
            if line.end != End::Line && self.may_grow() {
                break;
            }
            if is_record
                && let Ok((_, fields)) = self.fields(line, &text)
                && seen.look(line.no, &fields)
            {
                break;
            }
        }
        seen.decide().map_err(Stop::Failed)
    }

    fn open(&self) -> Result<Records, Stop> {
        let input: Box<dyn BufRead> = match &self.plan.input {
            Input::Stdin => Box::new(BufReader::new(io::stdin())),
            Input::Stream(path) | Input::File(path) => {
                let file = File::open(path);
                let file = file.map_err(|error| Stop::Failed(format!("cannot read {}: {error}", path.display())))?;
                Box::new(BufReader::with_capacity(1 << 16, file))
            }
        };
        let name = match &self.plan.input {
            Input::Stdin => "-".to_owned(),
            Input::Stream(path) | Input::File(path) => path.display().to_string(),
        };
        let (input, problem) = look::looked(input, &name)?;
        match problem {
            Some(problem) => Err(Stop::Failed(problem)),
            None => Ok(Lines::new(Box::new(input), self.plan.longest)),
        }
    }

    /// The next record; the first one tells the format, which decides where records end.
    fn next(&self, lines: &mut Records, text: &mut Vec<u8>) -> Result<Option<Line>, Stop> {
        if self.format.is_none() {
            let first = lines.peek()?.trim_ascii_start().first().copied();
            lines.end_at(if first.is_some_and(|first| self.is_csv(first)) { Ends::csv() } else { Ends::Line });
        }
        Ok(lines.next(text)?)
    }

    /// Skips the first `count` lines, counting occurrences; returns false if there are fewer, or a record does not end
    /// there.
    fn skip(&mut self, lines: &mut Records, count: u64) -> Result<bool, Stop> {
        let mut text = Vec::new();
        while lines.lines() < count {
            let Some(line) = self.next(lines, &mut text)? else { return Ok(false) };
            if self.is_record(line, &text)?
                && let Ok((None, _)) = self.fields(line, &text)
            {
                self.ids.count(&text);
            }
        }
        Ok(lines.lines() == count)
    }

    /// Reads and reports a batch; at the end of the input it returns the record that was left there, if one was.
    fn batch(&mut self, lines: &mut Records, text: &mut Vec<u8>) -> Result<Option<Option<Line>>, Stop> {
        let mut batch = Batch::default();
        let mut messages = Vec::new();
        let first = lines.lines();
        let mut ended = None;
        let begun = lines.bytes();
        while lines.lines() - first < BATCH_LINES && lines.bytes() - begun < BATCH_BYTES {
            let Some(line) = self.next(lines, text)? else {
                ended = Some(None);
                break;
            };
            let is_record = self.is_record(line, text)?;
            if line.end != End::Line && self.may_grow() {
                lines.leave_last();
                ended = Some(Some(line));
                break;
            }
            if !is_record {
                continue;
            }
            match self.message(line, text) {
                Ok(message) => messages.push(message),
                Err(reason) => batch.rejects.push(Reject { line: line.no, reason, text: shown(text) }),
            }
        }
        if lines.lines() > first {
            batch.messages = messages.len() as u64;
            let named = messages.iter().map(|message| (&*self.plan.service, message));
            batch.rows = log_rows(self.plan.shards, named);
            (batch.lines, batch.hash, batch.bytes) = (lines.lines(), lines.hash(), lines.bytes());
            self.tell(Read::Batch(batch))?;
        }
        Ok(ended)
    }

    /// Returns whether more may be written behind the input's end.
    fn may_grow(&self) -> bool {
        !self.plan.complete && matches!(self.plan.input, Input::File(_))
    }

    fn is_csv(&self, first: u8) -> bool {
        match self.plan.format {
            ImportFormat::Csv => true,
            ImportFormat::Ndjson => false,
            ImportFormat::Auto => match self.plan.input.path().and_then(|path| path.extension()) {
                Some(end) if end == "csv" => true,
                Some(end) if end == "ndjson" || end == "jsonl" => false,
                Some(_) | None => first != b'{',
            },
        }
    }

    /// Returns whether a line is a record: a header and blank lines are not.
    fn is_record(&mut self, line: Line, text: &[u8]) -> Result<bool, Stop> {
        if text.trim_ascii().is_empty() {
            return Ok(false);
        }
        if self.format.is_some() {
            return Ok(true);
        }
        if !text.trim_ascii_start().first().is_some_and(|first| self.is_csv(*first)) {
            self.format = Some(Format::Ndjson);
            return Ok(true);
        }
        let header =
            self.text(line, text).map_err(|reason| Stop::Failed(format!("the header cannot be read: {reason}")))?;
        self.format = Some(Format::csv(header).map_err(Stop::Failed)?);
        Ok(false)
    }

    fn text<'t>(&self, line: Line, text: &'t [u8]) -> Result<&'t str, String> {
        let longest = self.plan.longest;
        if line.end == End::OpenQuote {
            let no = line.no;
            return Err(format!(
                "a quote that is opened in line {no} or behind it is not closed until the input's end"
            ));
        }
        if line.bytes > longest as u64 {
            let bytes = line.bytes;
            return Err(format!(
                "the record has {bytes} bytes, at most {longest} are allowed (ingress.message_bytes_max)"
            ));
        }
        std::str::from_utf8(text)
            .map_err(|error| format!("the record is not valid UTF-8 from byte {}", error.valid_up_to() + 1))
    }

    /// The id that a record names, and its fields without it: the id is the message's, and a handler without an id in
    /// its payload could not decode it.
    fn fields(&self, line: Line, text: &[u8]) -> Result<(Option<String>, Fields), String> {
        let said = self.text(line, text)?;
        self.format.as_ref().ok_or("the format is not known yet")?.read(said)
    }

    fn message(&mut self, line: Line, text: &[u8]) -> Result<Message, String> {
        let (id, mut fields) = self.fields(line, text)?;
        self.amounts.convert(&mut fields)?;
        let id = id.unwrap_or_else(|| {
            let occurrence = self.ids.count(text);
            self.ids.id(text, occurrence).to_string()
        });
        let payload = serde_json::to_vec(&fields).map_err(|error| error.to_string())?;
        let said = |error: PayloadError| error.to_string();
        let (payload, content_type) = self.handlers.written(&self.plan.service, payload, None).map_err(said)?;
        let kind = format!("{}.import", self.plan.service);
        let key =
            self.handlers.key_of(&self.plan.service, Payload::new(&payload, &kind, content_type)).map_err(said)?;
        let line_no = line.no.to_string();
        let content_type = content_type.map(|said| ("content-type", said));
        let headers: Vec<_> = [("importline", line_no.as_str())].into_iter().chain(content_type).collect();
        let draft = Draft {
            id: &id,
            key: key.as_str(),
            kind: &kind,
            source: &format!("import:{}", self.plan.source),
            time: Clock::system().now(),
            headers: &headers,
            payload: &payload,
        };
        let message = draft.build().map_err(|error| error.to_string())?;
        let (bytes, longest) = (message.frame().len(), self.plan.longest);
        if bytes > longest {
            return Err(format!(
                "the message has {bytes} bytes, at most {longest} are allowed (ingress.message_bytes_max)"
            ));
        }
        Ok(message)
    }

    fn tell(&self, what: Read) -> Result<(), Stop> {
        self.told.blocking_send(what).map_err(|_| Stop::NobodyListens)
    }
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(SHOWN_MAX)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(plan: Plan) -> Vec<Read> {
        let (told, mut listen) = tokio::sync::mpsc::channel(100);
        read(plan, &crate::defaults::handlers(&crate::defaults::settings()).unwrap(), &told);
        drop(told);
        std::iter::from_fn(|| listen.try_recv().ok()).collect()
    }

    fn plan(path: PathBuf, done: Option<(u64, String)>) -> Plan {
        Plan {
            input: Input::File(path),
            format: ImportFormat::Auto,
            service: "transactions".into(),
            source: "f.csv".to_owned(),
            shards: 8,
            longest: 300,
            done,
            amounts: None,
            complete: false,
        }
    }

    fn batches(told: &[Read]) -> Vec<&Batch> {
        told.iter().filter_map(|read| if let Read::Batch(batch) = read { Some(batch) } else { None }).collect()
    }

    #[test]
    fn bad_lines_are_refused_with_number_and_reason_and_the_rest_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.csv");
        let long = "x".repeat(400);
        let mut text = b"account,amount,currency,at,id\r\na,1,EUR,2026-01-31,\r\n\r\n,1,EUR,2026-01-31,\n".to_vec();
        text.extend_from_slice(b"a,1,EUR,2026-01-31,\xff\n");
        text.extend_from_slice(
            format!("{long},1,EUR,2026-01-31,\na,1,euro,2026-01-31,\nb,2,EUR,2026-01-31,m-1\n").as_bytes(),
        );
        std::fs::write(&path, text).unwrap();
        let told = run(plan(path, None));
        let [batch] = batches(&told)[..] else { panic!("{told:?}") };
        assert_eq!((batch.messages, batch.lines), (2, 8));
        let rejects: Vec<_> = batch.rejects.iter().map(|reject| (reject.line, reject.reason.as_str())).collect();
        assert_eq!(rejects.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [4, 5, 6, 7]);
        for (found, part) in rejects.iter().zip(["the account is empty", "UTF-8 from byte 20", "418 bytes", "euro"]) {
            assert!(found.1.contains(part), "{found:?} lacks {part}");
        }
        assert!(matches!(told.last(), Some(Read::End)));
    }

    #[test]
    fn a_second_run_reads_only_what_is_new() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.ndjson");
        let line = r#"{"account":"a","amount":1,"currency":"EUR","at":"2026-01-31"}"#;
        std::fs::write(&path, format!("{line}\n").repeat(1_500)).unwrap();
        let told = run(plan(path.clone(), None));
        let first = batches(&told);
        assert_eq!(
            first.iter().map(|batch| (batch.lines, batch.messages)).collect::<Vec<_>>(),
            [(1_000, 1_000), (1_500, 500)]
        );

        std::fs::write(&path, format!("{line}\n").repeat(1_501)).unwrap();
        let told = run(plan(path.clone(), Some((1_500, first[1].hash.clone()))));
        assert!(matches!(told[0], Read::GoesOn(_)));
        assert_eq!(batches(&told).iter().map(|batch| (batch.lines, batch.messages)).collect::<Vec<_>>(), [(1_501, 1)]);

        for done in [(1_500, "other".to_owned()), (9_999, first[1].hash.clone())] {
            let told = run(plan(path.clone(), Some(done)));
            assert!(matches!(told[..], [Read::Changed, Read::End]), "nothing more is read");
        }
    }

    #[test]
    fn a_missing_file_and_a_header_that_does_not_fit_end_the_import() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.csv");
        let failed = |told: Vec<Read>, part: &str| {
            assert!(matches!(&told[..], [Read::Failed(reason)] if reason.contains(part)), "{told:?}");
        };
        failed(run(plan(path.clone(), None)), "cannot read");
        std::fs::write(&path, "account,amount\n").unwrap();
        failed(run(plan(path.clone(), None)), "lacks currency, at");
        std::fs::write(&path, b"\xff\n").unwrap();
        failed(run(plan(path, None)), "UTF-8");
    }
}
