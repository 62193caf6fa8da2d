//! The order and pace of messages to a broker that may refuse one for the moment (a nack) and take those behind it.
//! Pure.
//! In: messages, each with its way and key; the answer to each. Out: messages to send now; the time of the next look.
//!
//! One message of a key is on its way at a time: a second one, sent before the first is known to be there, would
//! overtake it whenever the first is refused and the second is not, and no later repair would turn them round again.
//! Keys go side by side.
//!
//! A way (an exchange, one of its streams) has a window of messages without an answer. When one is refused it comes
//! back to the head of its way, and one at a time is tried after pauses that double: a full queue is asked seldom, and
//! is found to have room in less than twice the time that it took to have some. Once one is taken, the window doubles
//! with each full window that is taken, up to half of its former size; beyond that it grows by one each time.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use crate::clock::Dice;

/// The window of a way that has refused nothing: other bounds are reached before it.
const WIDEST: f64 = 65_536.0;
/// The bound of the pause after a first refusal.
const PAUSE: Duration = Duration::from_millis(5);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A message that was handed out, until its answer comes.
#[derive(Debug)]
pub(crate) struct PacedMessage {
    way: u64,
    no: u64,
    key: Option<u64>,
    round: u64,
    /// True if no message has arrived by this way so far.
    #[cfg_attr(not(any(test, feature = "rabbitmq")), expect(dead_code, reason = "only a channel of RabbitMQ asks"))]
    pub(crate) first: bool,
}

/// Waiting messages of one channel, by their ways and keys.
#[derive(Debug)]
pub(crate) struct Pace<M> {
    ways: BTreeMap<u64, Way<M>>,
    /// For each key with a message that is ready or on its way: the messages behind it, with their ways.
    keys: HashMap<u64, VecDeque<(u64, Ready<M>)>>,
    next: u64,
    dice: Dice,
}

#[derive(Debug)]
struct Ready<M> {
    no: u64,
    key: Option<u64>,
    message: M,
}

#[derive(Debug)]
struct Way<M> {
    /// The messages in the order in which they came.
    ready: BTreeMap<u64, Ready<M>>,
    unanswered: usize,
    window: f64,
    /// Below this size the window doubles.
    half: f64,
    /// True once a message has arrived: until then they are sent one at a time.
    begun: bool,
    /// The number of refusals since a message was taken, each of another round.
    refusals: u32,
    /// A number that rises with each refusal that counts: the refusals of others on their way then say nothing new.
    round: u64,
    /// Nothing is sent until this time.
    paused_until: Duration,
}

impl<M> Way<M> {
    fn new() -> Self {
        let (ready, paused_until) = (BTreeMap::new(), Duration::ZERO);
        Self { ready, unanswered: 0, window: WIDEST, half: WIDEST, begun: false, refusals: 0, round: 0, paused_until }
    }

    fn has_room(&self) -> bool {
        let window = if self.begun { self.window } else { 1.0 };
        (self.unanswered as f64) < window.floor()
    }
}

impl<M> Pace<M> {
    /// A pace without messages.
    pub(crate) fn new(dice: Dice) -> Self {
        Self { ways: BTreeMap::new(), keys: HashMap::new(), next: 0, dice }
    }

    /// Puts a message behind all others of its key. One without a key waits for no other.
    pub(crate) fn push(&mut self, way: u64, key: Option<u64>, message: M) {
        let ready = Ready { no: self.next, key, message };
        self.next += 1;
        match key.map(|key| self.keys.entry(key)) {
            Some(Entry::Occupied(mut behind)) => return behind.get_mut().push_back((way, ready)),
            Some(Entry::Vacant(key)) => drop(key.insert(VecDeque::new())),
            None => {}
        }
        self.ready(way, ready);
    }

    fn ready(&mut self, way: u64, ready: Ready<M>) {
        self.ways.entry(way).or_insert_with(Way::new).ready.insert(ready.no, ready);
    }

    /// The messages to send now, in the order in which they came for each way.
    pub(crate) fn due(&mut self, now: Duration) -> Vec<(PacedMessage, M)> {
        let mut due = Vec::new();
        for (number, way) in &mut self.ways {
            while way.paused_until <= now
                && way.has_room()
                && let Some((no, Ready { key, message, .. })) = way.ready.pop_first()
            {
                way.unanswered += 1;
                due.push((PacedMessage { way: *number, no, key, round: way.round, first: !way.begun }, message));
            }
        }
        due
    }

    /// The time until a message is due, if only time is missing.
    #[cfg(any(test, feature = "rabbitmq"))]
    pub(crate) fn due_in(&self, now: Duration) -> Option<Duration> {
        let waiting = self.ways.values().filter(|way| !way.ready.is_empty() && way.has_room());
        waiting.map(|way| way.paused_until.saturating_sub(now)).min()
    }

    /// Returns whether the first message of a way is not answered.
    #[cfg(any(test, feature = "rabbitmq"))]
    pub(crate) fn awaits_first(&self) -> bool {
        self.ways.values().any(|way| !way.begun && way.unanswered > 0)
    }

    /// Records that the broker has a message, or, if it has not arrived, never will: the next one of its key may go.
    pub(crate) fn settled(&mut self, sent: &PacedMessage, arrived: bool) {
        if let Some(way) = self.ways.get_mut(&sent.way) {
            way.unanswered -= 1;
            way.begun |= arrived;
            if arrived && sent.round == way.round {
                way.refusals = 0;
                let grown = if way.window < way.half { 1.0 } else { 1.0 / way.window };
                way.window = (way.window + grown).min(WIDEST);
            }
        }
        let Some(key) = sent.key else { return };
        match self.keys.get_mut(&key).and_then(VecDeque::pop_front) {
            Some((way, next)) => self.ready(way, next),
            None => drop(self.keys.remove(&key)),
        }
    }

    /// Records that the broker does not take a message now: it will be due again, before all later ones.
    pub(crate) fn refused(&mut self, sent: PacedMessage, message: M, now: Duration) {
        let PacedMessage { way, no, key, round, .. } = sent;
        let Some(way) = self.ways.get_mut(&way) else { return };
        if round == way.round {
            if way.refusals == 0 {
                way.half = (way.window.min(way.unanswered as f64) / 2.0).max(1.0);
                way.window = 1.0;
            }
            way.refusals += 1;
            way.round += 1;
            let bound = PAUSE_MAX.min(PAUSE * 2_u32.pow(way.refusals.min(16) - 1));
            way.paused_until = now + bound.mul_f64(0.5 + self.dice.unit() / 2.0);
        }
        way.unanswered -= 1;
        way.ready.insert(no, Ready { no, key, message });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::*;

    const TICK: Duration = Duration::from_millis(1);

    /// A broker with a queue that has a bound, whose answers take a while.
    struct Broker {
        room: usize,
        queue: VecDeque<u64>,
        /// Messages that were sent and are not answered, with the time of their answer.
        line: VecDeque<(Duration, PacedMessage, u64)>,
        arrived: Vec<u64>,
        refused: usize,
        most: usize,
    }

    impl Broker {
        fn new(room: usize) -> Self {
            let (queue, line, arrived) = (VecDeque::new(), VecDeque::new(), Vec::new());
            Self { room, queue, line, arrived, refused: 0, most: 0 }
        }

        /// Simulates one tick; in addition to a full queue, refuses as `refuses` says.
        fn tick(&mut self, pace: &mut Pace<u64>, now: Duration, mut refuses: impl FnMut() -> bool) {
            for (sent, message) in pace.due(now) {
                self.line.push_back((now + TICK * 2, sent, message));
            }
            self.most = self.most.max(self.line.len());
            while let Some((_, sent, message)) = self.line.pop_front_if(|(at, ..)| *at <= now) {
                if self.queue.len() >= self.room || refuses() {
                    self.refused += 1;
                    pace.refused(sent, message, now);
                } else {
                    self.queue.push_back(message);
                    self.arrived.push(message);
                    pace.settled(&sent, true);
                }
            }
        }
    }

    fn key_of(message: u64, keys: u64) -> u64 {
        message * 31 % keys
    }

    /// The number of messages that arrived before an earlier one of their key.
    fn swapped(arrived: &[u64], keys: u64) -> usize {
        let mut newest = HashMap::new();
        let early =
            |message: &&u64| newest.insert(key_of(**message, keys), **message).is_some_and(|last| last > **message);
        arrived.iter().filter(early).count()
    }

    #[test]
    fn ten_thousand_refusals_at_random_swap_nothing_and_lose_nothing() {
        let mut dice = Dice::seeded(21);
        let mut refused = 0;
        for round in 0..60 {
            let (keys, count) = (1 + dice.below(40), 500);
            let mut pace = Pace::new(Dice::seeded(round));
            let mut broker = Broker::new(usize::MAX);
            // One exchange or several; one in ten refused, or nine.
            let (ways, odds) = (1 + dice.below(3), 1 + dice.below(9));
            (0..count).for_each(|message| pace.push(message % ways, Some(key_of(message, keys)), message));
            let mut now = Duration::ZERO;
            while broker.arrived.len() < count as usize {
                now += TICK;
                broker.tick(&mut pace, now, || dice.below(10) < odds);
                let on_their_way: Vec<u64> = broker.line.iter().map(|(_, _, message)| key_of(*message, keys)).collect();
                let different: HashSet<&u64> = on_their_way.iter().collect();
                assert_eq!(different.len(), on_their_way.len(), "two of a key are on their way");
            }
            assert_eq!(broker.arrived.iter().collect::<BTreeSet<_>>().len(), count as usize, "each arrives once");
            assert_eq!(swapped(&broker.arrived, keys), 0, "{keys} keys");
            assert!(pace.keys.is_empty() && pace.ways.values().all(|way| way.unanswered == 0 && way.ready.is_empty()));
            refused += broker.refused;
        }
        assert!(refused >= 10_000, "{refused} were refused");
    }

    #[test]
    fn a_full_queue_gets_what_its_consumer_takes_and_few_are_refused() {
        for keys in [7, 1_000] {
            let mut pace = Pace::new(Dice::seeded(3));
            let mut broker = Broker::new(200);
            (0..8_000).for_each(|message| pace.push(0, Some(key_of(message, keys)), message));
            let (mut now, mut idle) = (Duration::ZERO, 0);
            while broker.arrived.len() < 8_000 {
                now += TICK;
                broker.tick(&mut pace, now, || false);
                // One message a millisecond.
                idle += usize::from(broker.queue.pop_front().is_none());
            }
            assert_eq!(swapped(&broker.arrived, keys), 0);
            assert!(idle < 80, "{keys} keys: its consumer waited {idle} times of 8,000");
            // All of the first flight that find no room, then some each time that it is full.
            let most = usize::try_from(keys).unwrap() + 1_200;
            assert!(broker.refused < most, "{keys} keys: {} were refused", broker.refused);
        }
    }

    #[test]
    fn a_queue_that_takes_nothing_is_asked_by_one_at_a_time_and_seldom() {
        let mut pace = Pace::new(Dice::seeded(5));
        let mut broker = Broker::new(10);
        (0..500).for_each(|message| pace.push(0, Some(message), message));
        let mut now = Duration::ZERO;
        while now < Duration::from_secs(600) {
            now += TICK;
            broker.tick(&mut pace, now, || false);
        }
        assert!(broker.refused < 500 + 600 * 2, "{} were refused within ten minutes", broker.refused);
        // It resumes as soon as a pause is over.
        let mut waited = Duration::ZERO;
        broker.queue.clear();
        while broker.queue.is_empty() {
            waited += TICK;
            broker.tick(&mut pace, now + waited, || false);
        }
        assert!(waited <= PAUSE_MAX + TICK * 4, "{waited:?}");
    }

    #[test]
    fn the_window_is_cut_once_for_all_that_were_on_their_way_and_doubles_up_to_half() {
        let mut pace = Pace::new(Dice::seeded(7));
        (0..101).for_each(|message| pace.push(0, None, message));
        let (first, _) = pace.due(Duration::ZERO).remove(0);
        assert!(
            first.first && pace.awaits_first() && pace.due(Duration::ZERO).is_empty(),
            "nothing follows a first one"
        );
        pace.settled(&first, true);
        let all = pace.due(Duration::ZERO);
        assert_eq!((all.len(), all.iter().any(|(sent, _)| sent.first)), (100, false));
        all.into_iter().for_each(|(sent, message)| pace.refused(sent, message, Duration::ZERO));
        assert_eq!(pace.due(Duration::ZERO).len(), 0, "it pauses");
        let later = pace.due_in(Duration::ZERO).unwrap();
        assert!(!later.is_zero() && later <= PAUSE);
        let (probe, message) = pace.due(later).remove(0);
        assert_eq!((message, pace.due(later).len()), (1, 0), "the first of them alone");
        pace.settled(&probe, true);
        let mut windows = Vec::new();
        loop {
            let window = pace.due(later);
            if window.is_empty() {
                break;
            }
            windows.push(window.len());
            window.iter().for_each(|(sent, _)| pace.settled(sent, true));
        }
        assert_eq!(windows, [2, 4, 8, 16, 32, 37], "it doubles, and grows by one from half of the hundred on");
        let window = pace.ways[&0].window;
        assert!((50.0..52.0).contains(&window), "{window}");
    }

    #[test]
    fn what_will_never_arrive_lets_the_next_of_its_key_go_and_proves_no_way() {
        let mut pace = Pace::new(Dice::seeded(9));
        for message in 0..3 {
            pace.push(message % 2, Some(1), message);
        }
        let mut next = || {
            let (sent, message) = pace.due(Duration::ZERO).remove(0);
            pace.settled(&sent, message == 2);
            (sent.first, message)
        };
        assert_eq!([next(), next(), next()], [(true, 0), (true, 1), (true, 2)], "across ways, too");
    }
}
