//! Detects the version of HTTP by the first bytes of a connection.
//! In: a connection. Out: whether it is HTTP/2, and the connection with these bytes still to be read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// The first bytes of a connection of HTTP/2.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads until the version is clear. The caller must bound the time: a client may send half of the preface and fall
/// silent.
pub(super) async fn look<I: AsyncRead + Unpin>(mut io: I) -> io::Result<(bool, Seen<I>)> {
    let mut bytes = [0; PREFACE.len()];
    let mut len = 0;
    while len < bytes.len() && PREFACE.starts_with(&bytes[..len]) {
        let read = io.read(&mut bytes[len..]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        len += read;
    }
    Ok((bytes == *PREFACE, Seen { bytes, from: 0, to: len, io }))
}

/// A connection of which some bytes were read.
#[derive(Debug)]
pub(super) struct Seen<I> {
    bytes: [u8; PREFACE.len()],
    from: usize,
    to: usize,
    io: I,
}

impl<I: AsyncRead + Unpin> AsyncRead for Seen<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.from < self.to {
            let len = buf.remaining().min(self.to - self.from);
            buf.put_slice(&self.bytes[self.from..self.from + len]);
            self.from += len;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Seen<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(sent: &[u8]) -> io::Result<(bool, Vec<u8>)> {
        let (is_h2, mut io) = look(sent).await?;
        let mut read = Vec::new();
        io.read_to_end(&mut read).await?;
        Ok((is_h2, read))
    }

    #[tokio::test]
    async fn the_first_bytes_tell_and_are_not_lost() {
        let h2 = [PREFACE.as_slice(), b"frames"].concat();
        assert_eq!(told(&h2).await.unwrap(), (true, h2));
        for h1 in
            [&b"POST / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/1.1\r\n\r\nand more than that", b"GET / HTTP/1.1\r\n\r\n"]
        {
            assert_eq!(told(h1).await.unwrap(), (false, h1.to_vec()));
        }
        assert!(told(b"PRI * HTTP").await.is_err() && told(b"").await.is_err());
    }
}
