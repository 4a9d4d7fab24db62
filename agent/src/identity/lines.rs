//! JSON lines of the enrolment protocol: bounded reading, one message a line.

use std::io;

use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use zeroize::{Zeroize as _, Zeroizing};

/// Reads one line of at most `limit` bytes with its line feed, and returns it without. Bytes
/// behind the line feed are an error: the client has nothing more to say.
pub(super) async fn read_line<S: AsyncRead + Unpin>(
    stream: &mut S,
    limit: usize,
) -> io::Result<Zeroizing<Vec<u8>>> {
    let invalid = |text: &'static str| io::Error::new(io::ErrorKind::InvalidData, text);
    let mut line = Zeroizing::new(Vec::with_capacity(limit));
    let mut part = Zeroizing::new([0; 2048]);
    loop {
        let room = (limit - line.len()).min(part.len());
        if room == 0 {
            return Err(invalid("the message is too long"));
        }
        let read = stream.read(&mut part[..room]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // `limit` bytes of capacity are there: the secret is not left behind by a growing vector.
        line.extend_from_slice(&part[..read]);
        if let Some(end) = part[..read].iter().position(|byte| *byte == b'\n') {
            if end + 1 != read {
                return Err(invalid("there is more than one message"));
            }
            line.pop();
            return Ok(line);
        }
    }
}

/// Writes a message and its line feed, and flushes.
pub(super) async fn write_line<S: AsyncWrite + Unpin, T: Serialize>(
    stream: &mut S,
    message: &T,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let written = stream.write_all(&line).await;
    line.zeroize();
    written?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8], limit: usize) -> io::Result<Vec<u8>> {
        read_line(&mut &*bytes, limit)
            .await
            .map(|line| line.to_vec())
    }

    #[tokio::test]
    async fn a_line_may_fill_the_limit_and_not_more() {
        assert_eq!(read(b"abc\n", 4).await.unwrap(), b"abc");
        assert!(read(b"abcd\n", 4).await.is_err());
        assert!(read(b"abc", 8).await.is_err());
        assert!(read(b"abc\nd", 8).await.is_err());
        let long = [vec![b'x'; 5000], b"\n".to_vec()].concat();
        assert_eq!(read(&long, 5001).await.unwrap().len(), 5000);
        assert!(read(&long, 5000).await.is_err());
    }
}
