//! Bodies of requests, bounded in size and time.
//! In: a body as it arrives. Out: the same, or an error as soon as it is too large or too slow.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use perkey::sleep;

/// Reasons why a body could not be read.
#[derive(Debug)]
pub enum BodyError {
    /// It has more bytes than this.
    TooLarge(usize),
    /// It took longer than this.
    TooSlow(Duration),
    /// The connection broke.
    Broken(hyper::Error),
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge(max) => write!(f, "the body has more than {max} bytes"),
            Self::TooSlow(max) => write!(f, "the body took longer than {max:?}"),
            Self::Broken(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BodyError {}

/// A body with bounds.
pub(super) struct Bounded<B> {
    body: B,
    left: usize,
    max: usize,
    within: Duration,
    /// The deadline, set with the first wait: most bodies are there when they are asked for.
    late: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<B> Bounded<B> {
    pub(super) fn new(body: B, max: usize, within: Duration) -> Self {
        Self { body, left: max, max, within, late: None }
    }
}

impl<B: Body<Data = Bytes, Error = hyper::Error> + Unpin> Body for Bounded<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.body.size_hint().lower() > self.left as u64 {
            return Poll::Ready(Some(Err(BodyError::TooLarge(self.max))));
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let len = frame.data_ref().map_or(0, Bytes::len);
                let Some(left) = self.left.checked_sub(len) else {
                    return Poll::Ready(Some(Err(BodyError::TooLarge(self.max))));
                };
                self.left = left;
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(BodyError::Broken(error)))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let within = self.within;
                let late = self.late.get_or_insert_with(|| Box::pin(sleep(within)));
                late.as_mut().poll(cx).map(|()| Some(Err(BodyError::TooSlow(within))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
