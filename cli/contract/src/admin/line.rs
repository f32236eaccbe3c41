//! Reading one bounded line.

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("a message is longer than {limit} bytes")]
    TooLong { limit: u64 },
    #[error("the connection ended in the middle of a message")]
    Cut,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// The next line without its newline; `None` at a clean end. Holds at most `limit` bytes and the reader's
/// buffer.
pub(super) async fn read_line<R>(reader: &mut R, limit: u64) -> Result<Option<Vec<u8>>, LineError>
where
    R: AsyncBufRead + Unpin,
{
    let mut line = Vec::new();
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return if line.is_empty() { Ok(None) } else { Err(LineError::Cut) };
        }
        let newline = available.iter().position(|b| *b == b'\n');
        let take = newline.unwrap_or(available.len());
        if (line.len() + take) as u64 > limit {
            return Err(LineError::TooLong { limit });
        }
        line.extend(available.iter().take(take));
        reader.consume(newline.map_or(take, |at| at + 1));
        if newline.is_some() {
            return Ok(Some(line));
        }
    }
}
