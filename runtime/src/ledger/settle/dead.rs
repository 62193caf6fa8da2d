//! Dead letters: the reports about them, their number, and the time for which they are kept.
//! In: messages that are given up, the store's pages of old letters. Out: rows of dead letters, events and answers
//! about them; letters that are removed.

use uuid::Uuid;

use super::record::HistoryKind;
use crate::clock::{Millis, millis};
use crate::handler::{Asked, Outcome, SentMessage, call_of};
use crate::ledger::Ledger;
use crate::ledger::batches::group::Group;
use crate::ledger::operator::merge;
use crate::ledger::protocol::{Action, Question};
use crate::ledger::routes::DEAD_LETTER;
use crate::ledger::slot::Item;
use crate::message::{Draft, ServiceIx, keyed_hash};
use crate::store::calls::{CallOutcome, Reply};
use crate::store::{
    CommandResult, DeadLetter, EmittedEvent, HistoryRow, Letters, OfService, OldLetters, Part, PendingRow, ServiceKey,
    TimerWrite,
};

/// The pauses between two pages of dead letters that are looked through for old ones, and between two rounds through
/// all.
const OLD_MS: Millis = 1_000;
const OLD_ALL_MS: Millis = 10_000;

/// The ledger's knowledge of the shard's dead letters, and its walk through those that were kept for `dlq.keep`.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters {
    /// Their number as of the last commit.
    pub(crate) count: Letters,
    /// The last one that was looked at.
    after: u64,
    /// The time at which the walk goes on.
    next: Millis,
    /// True if the store was asked, or the removal of the letters that it found is not durable.
    busy: bool,
}

impl DeadLetters {
    pub(crate) fn new(count: Letters) -> Self {
        Self { count, ..Self::default() }
    }

    /// True if letters are being removed: no operator acts on them meanwhile.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }

    /// True if there are as many letters as may be: nothing more is taken in.
    pub(crate) fn is_full(&self, most: u64) -> bool {
        self.count.count >= most
    }

    /// Their number once a batch is durable: its parts bring some, its groups remove others.
    pub(crate) fn once_durable(&self, parts: &[Part], groups: &[Group]) -> Letters {
        let born = parts.iter().flat_map(|part| &part.dead).map(|letter| Letters::one(&letter.id, letter.holds_key));
        groups.iter().map(|group| group.gone).fold(born.fold(self.count, Letters::plus), Letters::minus)
    }

    /// The question for the next page of letters from before `keep`, if it is time for it.
    fn look(&mut self, now: Millis, keep: Millis) -> Option<Question> {
        let rests = keep == 0 || self.count.count == self.count.holding || now < self.next || self.busy;
        self.busy |= !rests;
        (!rests).then(|| Question::OldLetters(self.after, now.saturating_sub(keep)))
    }

    /// Takes note of a page that was found.
    fn found(&mut self, page: &OldLetters, now: Millis) {
        // From the first one again, once all were looked at.
        self.after = page.last.unwrap_or(0);
        self.next = now.saturating_add(if page.last.is_some() { OLD_MS } else { OLD_ALL_MS });
        self.busy = !page.letters.is_empty();
    }

    /// Takes note that a part without a key is durable.
    pub(crate) fn committed(&mut self, part: &Part) {
        if part.command.is_none() && !part.undead.is_empty() {
            self.busy = false;
        }
    }
}

/// A dead letter and the reports about it: an event, an answer to the service that asked, the reply to a call.
#[derive(Debug)]
pub(crate) struct Death {
    letter: DeadLetter,
    event: Option<EmittedEvent>,
    answer: Option<SentMessage>,
    reply: Option<Reply>,
}

impl Death {
    /// Makes it part of a commit.
    pub(crate) fn write(self, part: &mut Part) {
        part.events.extend(self.event);
        part.sent.extend(self.answer);
        part.replies.extend(self.reply);
        part.dead.push(self.letter);
    }
}

impl Ledger {
    /// Makes a message a dead letter, of a service of this program or of another.
    pub(crate) fn dies(&mut self, service: Option<ServiceIx>, letter: DeadLetter) -> Death {
        self.tally.dead.push(service);
        self.count("dead_letters", 1);
        let event = self.obituary(&letter);
        // Nobody waits for an event that a sink refused.
        let asked = !letter.id.is_outgoing();
        let answer = asked.then(|| self.bad_news(&letter)).flatten();
        let call = call_of(&letter.message).filter(|_| asked);
        let reply = call.map(|call| Reply { call, outcome: CallOutcome::failed(&letter.error) });
        Death { letter, event, answer, reply }
    }

    /// The event about a dead letter, if that is wanted. An event about such an event would have no end.
    fn obituary(&self, letter: &DeadLetter) -> Option<EmittedEvent> {
        let message = &letter.message;
        if !self.config.bindings.tells_of_dead() || message.kind() == DEAD_LETTER {
            return None;
        }
        let id = self.id_from(letter, b"").to_string();
        let attempts = letter.history.last().map_or(0, |attempt| attempt.attempt).to_string();
        let mut headers: Vec<_> = message.headers().collect();
        headers.extend([
            ("deadid", message.id()),
            ("deadtype", message.kind()),
            ("deadsource", message.source()),
            ("deadservice", &*letter.service),
            ("deaderror", letter.error.as_str()),
            ("deadattempts", attempts.as_str()),
        ]);
        let (key, source, payload) = (&*letter.key, "perkey", message.payload());
        let draft = Draft { id: &id, key, kind: DEAD_LETTER, source, time: letter.at, headers: &headers, payload };
        // Larger than the message by a few lines: it was a frame already.
        let message = draft.build_unchecked().ok()?;
        // Another program's service may have no number that this one knows.
        let service = self.service_of(&letter.service).map(|_| letter.service.clone()).unwrap_or_default();
        Some(EmittedEvent { service, cause: letter.id.digest(), message })
    }

    /// The answer to the service that sent a command which became a dead letter.
    fn bad_news(&self, letter: &DeadLetter) -> Option<SentMessage> {
        let asked = Asked::of(&letter.message)?;
        let id = self.id_from(letter, b"answered");
        let from = format!("perkey:{}", letter.service);
        asked.answer(&from, id, Outcome::DeadLetter(letter.error.clone()), (&letter.message, letter.at))
    }

    /// An id for a report about a dead letter: the same for each attempt to write it.
    fn id_from(&self, letter: &DeadLetter, what: &[u8]) -> Uuid {
        let mut seed = letter.id.0.to_vec();
        seed.extend_from_slice(&self.shard.to_le_bytes());
        seed.extend_from_slice(&letter.seq.to_le_bytes());
        seed.extend_from_slice(what);
        Uuid::new_v8(keyed_hash(&seed, &self.config.hash_key))
    }

    /// Looks for dead letters that were kept for long enough, page by page.
    pub(crate) fn look_for_old(&mut self) {
        if self.command.is_none() && !self.draining {
            let question = self.dead_letters.look(self.now, millis(self.config.settings.dlq.keep));
            self.out.extend(question.map(Action::Ask));
        }
    }

    /// Handles the store's answer to [`Question::OldLetters`]: the letters are removed with the next commit, and
    /// `explain` shows that.
    pub(crate) fn old_found(&mut self, found: OldLetters) {
        let now = self.now;
        self.dead_letters.found(&found, now);
        self.tally.expired += found.letters.len() as u64;
        let group = self.batches.loose();
        for letter in found.letters {
            group.gone = group.gone.plus(Letters::one(&letter.id, false));
            group.part.undead.push(letter.seq);
            group.part.history.push(HistoryRow {
                service: letter.service,
                key: letter.key,
                id: letter.message_id,
                at: now,
                attempt: 0,
                generation: 0,
                what: HistoryKind::Expired.as_str().to_owned(),
                error: "it was a dead letter for longer than dlq.keep".to_owned(),
            });
        }
    }

    /// Handles the store's answer to [`Question::Service`]: nothing of it is in hand, because this program does not
    /// have the service. Timers are removed; messages become dead letters, so that the services that asked for them are
    /// told, and nothing is lost before it is discarded.
    pub(crate) fn service_found(&mut self, id: i64, found: OfService) {
        let Some(progress) = self.command.as_mut().filter(|progress| progress.command.id == id) else { return };
        progress.outstanding = (found.pending.len() + found.timers.len()) as u64;
        if progress.outstanding == 0 {
            return self.command_ends(id);
        }
        let error = format!("given up by {} (command {id}): no program has its service", progress.command.who);
        for timer in found.timers {
            let part = &mut self.batches.loose().part;
            part.timers.push(TimerWrite { service: timer.of.service, key: timer.of.key, name: timer.name, set: None });
            merge(part, CommandResult { command: id, affected: 1, done: false });
        }
        for row in found.pending {
            self.give_up_row(row, error.clone());
            merge(&mut self.batches.loose().part, CommandResult { command: id, affected: 1, done: false });
        }
    }

    /// Makes a row that no key waits for a dead letter.
    fn give_up_row(&mut self, row: PendingRow, error: String) {
        let PendingRow { seq, service, key, id, taken_at, message, history, .. } = row;
        let letter =
            DeadLetter { seq, service, key, id, at: self.now, taken_at, error, holds_key: false, history, message };
        self.waiting.remove(1);
        let bytes = letter.message.frame().len();
        let death = self.dies(None, letter);
        let part = &mut self.batches.loose_with_room(bytes, self.config.settings.commit.bytes_max).part;
        part.settled.push(seq);
        death.write(part);
    }
}

pub(crate) fn dead_letter(
    item: &Item,
    seq: u64,
    key: ServiceKey,
    error: String,
    holds_key: bool,
    at: Millis,
) -> DeadLetter {
    DeadLetter {
        seq,
        service: key.service,
        key: key.key,
        id: item.id,
        at,
        taken_at: item.taken_at,
        error,
        holds_key,
        history: item.history.clone(),
        message: item.message.clone(),
    }
}
