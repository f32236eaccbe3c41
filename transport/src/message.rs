//! Control messages on a stream: a u32 little-endian length, then that many bytes.

use bytes::Bytes;
use quinn::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};

/// Bytes of the length in front of a message.
const LENGTH_BYTES: usize = 4;

/// A message that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The length is above the cap. Nothing was allocated for it or read of it; the stream is of no further use.
    #[error("message of {length_bytes} bytes, at most {cap_bytes} are allowed")]
    TooLong {
        /// What the length field says, or the message to write has.
        length_bytes: u64,
        /// What was allowed.
        cap_bytes: u32,
    },
    /// The stream ended inside a message.
    #[error("stream ended inside a message")]
    Truncated,
    /// The stream or its connection failed while reading.
    #[error("cannot read a message")]
    Read(#[from] ReadError),
    /// The stream or its connection failed while writing.
    #[error("cannot write a message")]
    Write(#[from] WriteError),
}

/// Reads one message of at most `cap_bytes`, or `None` where the stream ends between messages.
///
/// Not cancel safe: a read that is dropped half-way loses its place.
pub async fn read_message(stream: &mut RecvStream, cap_bytes: u32) -> Result<Option<Bytes>, MessageError> {
    let mut length = [0; LENGTH_BYTES];
    match stream.read_exact(&mut length).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let length = u32::from_le_bytes(length);
    if length > cap_bytes {
        return Err(MessageError::TooLong { length_bytes: length.into(), cap_bytes });
    }
    let mut message = vec![0; length as usize];
    stream.read_exact(&mut message).await?;
    Ok(Some(message.into()))
}

/// Writes one message of at most `cap_bytes`; returns once the transport has taken it, not once it has arrived.
///
/// Not cancel safe: a write that is dropped half-way leaves half a message on the stream.
pub async fn write_message(
    stream: &mut SendStream,
    message: &[u8],
    cap_bytes: u32,
) -> Result<(), MessageError> {
    let length = u32::try_from(message.len()).ok().filter(|length| *length <= cap_bytes);
    let length = length.ok_or(MessageError::TooLong { length_bytes: message.len() as u64, cap_bytes })?;
    stream.write_all(&length.to_le_bytes()).await?;
    stream.write_all(message).await?;
    Ok(())
}

impl From<ReadExactError> for MessageError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(_) => Self::Truncated,
            ReadExactError::ReadError(error) => Self::Read(error),
        }
    }
}
