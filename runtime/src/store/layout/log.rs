//! The layout of messages for services in a row of the embedded log.
//! In: messages, or a stored row. Out: one row, or the messages, which share its bytes.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::message::Message;

/// The transport's name in settings, positions and metrics.
pub const NAME: &str = "embedded";

const VERSION: u8 = 1;

/// Messages for services as one row of the log: a version, the services' names once each, then per message the
/// number of its service's name and its frame.
pub fn encode(messages: &[(&str, &Message)]) -> Bytes {
    let mut names: Vec<&str> = Vec::new();
    let mut row = BytesMut::with_capacity(64 + messages.iter().map(|(_, m)| 6 + m.frame().len()).sum::<usize>());
    let mut body = Vec::with_capacity(messages.len());
    for (name, message) in messages {
        let number = names.iter().position(|known| known == name).unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        });
        body.push((number, message));
    }
    row.put_u8(VERSION);
    row.put_u16_le(u16::try_from(names.len()).expect("a program has fewer than 65536 services"));
    for name in names {
        row.put_u16_le(u16::try_from(name.len()).expect("a service's name is short"));
        row.put_slice(name.as_bytes());
    }
    for (number, message) in body {
        row.put_u16_le(u16::try_from(number).expect("a program has fewer than 65536 services"));
        row.put_u32_le(u32::try_from(message.frame().len()).expect("a frame is shorter than 4 GiB"));
        row.put_slice(message.frame());
    }
    row.freeze()
}

/// The messages that [`encode`] laid into a row; they share its bytes.
pub fn decode(mut row: Bytes) -> Result<Vec<(Arc<str>, Message)>, RowError> {
    if row.is_empty() || row.get_u8() != VERSION {
        return Err(RowError("unknown version".to_owned()));
    }
    let mut names: Vec<Arc<str>> = Vec::new();
    for _ in 0..short(&mut row)? {
        let length = short(&mut row)? as usize;
        let name = cut(&mut row, length)?;
        let name = std::str::from_utf8(&name).map_err(|_| RowError("a service's name is not UTF-8".to_owned()))?;
        names.push(Arc::from(name));
    }
    let mut messages = Vec::new();
    while !row.is_empty() {
        let number = short(&mut row)? as usize;
        let name = names.get(number).ok_or_else(|| RowError("a service's name is missing".to_owned()))?;
        let length = row.try_get_u32_le().map_err(|_| RowError("cut short".to_owned()))? as usize;
        let frame = cut(&mut row, length)?;
        let message = Message::from_frame(frame).map_err(|error| RowError(error.to_string()))?;
        messages.push((Arc::clone(name), message));
    }
    Ok(messages)
}

/// A row of the log that does not decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the row of the log does not decode: {0}")]
pub struct RowError(String);

fn short(row: &mut Bytes) -> Result<u16, RowError> {
    row.try_get_u16_le().map_err(|_| RowError("cut short".to_owned()))
}

fn cut(row: &mut Bytes, length: usize) -> Result<Bytes, RowError> {
    if row.len() < length { Err(RowError("cut short".to_owned())) } else { Ok(row.split_to(length)) }
}
