//! Panics of handlers, contained so that none goes farther than its message.
//! In: the thrown value. Out: its text; the end of an actor; the end of a run, if it was not a turn that panicked.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use super::Settled;
use super::run::{HandlerPanic, TurnEnd, TurnFault};
use crate::message::Message;

/// The end of a run in which something of the handler's other than a turn panicked, with `left` messages not answered
/// for: none of these counts, and one that was alone is at fault.
pub(super) fn beside_the_turns(left: usize, reason: String) -> Settled {
    let fault = TurnFault::Retry(format!("the handler panicked beside its turn: {reason}"));
    let turns = if left == 1 { vec![TurnEnd::Fault(fault)] } else { Vec::new() };
    let panic = HandlerPanic { message_id: String::new(), cause: None, reason };
    Settled { turns, state: None, panic: Some(panic), alone: left > 1 }
}

/// The error with which the actor of a turn that panicked ends.
pub(super) fn panicked(message: &Message, own: Option<String>, reason: String) -> HandlerPanic {
    let cause = own.or_else(|| message.header("traceparent").map(str::to_owned));
    HandlerPanic { message_id: message.id().to_owned(), cause, reason }
}

/// The text of a panic. The value that it was thrown with may panic when it is dropped.
pub(super) fn panic_text(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    discard(panic);
    text.unwrap_or_else(|| "a value that is not text".to_owned())
}

/// Drops what a handler made, whatever comes of it.
pub(crate) fn discard<T>(value: T) {
    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| drop(value))) {
        // It could go on like that for ever.
        std::mem::forget(panic);
    }
}
