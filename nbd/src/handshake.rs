//! Drives the handshake over a stream: reads options within limits, sends what [`Negotiation`] answers.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    export::ExportInfo,
    negotiation::{Agreement, Negotiation, Step},
    wire::{self, DecodeError, OPTION_HEADER_BYTES},
};

/// The most data of an option that is looked at: a name and a dozen queries of the longest kind. Real clients
/// send a few hundred bytes.
const OPTION_DATA_BYTES_MAX: u32 = 64 << 10;
/// Longer data than that, up to here, is read and dropped and gets an error; beyond, the connection is closed.
const OPTION_DISCARD_BYTES_MAX: u32 = 1 << 20;
/// Options of one handshake. A client that lists everything sends two for each export.
const OPTIONS_MAX: u32 = 1024;
/// What is read at a time.
const READ_BYTES: usize = 4096;

/// Why a handshake ended without an agreement.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// The client closed the connection or said ABORT: usual after a listing.
    #[error("the client left during the handshake")]
    Left,
    #[error("the client does not speak this protocol: {0}")]
    Protocol(#[from] DecodeError),
    #[error("the client asked for an export that there is not, by a command that has no error reply")]
    Refused,
    #[error("the client sent an option with {length_bytes} bytes of data")]
    OversizedOption { length_bytes: u32 },
    #[error("the client sent more than {OPTIONS_MAX} options")]
    TooManyOptions,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Runs the handshake to its end. Returns the agreement and what the client sent after it.
///
/// No time limit of its own: the caller drops the future.
pub(crate) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    exports: Vec<ExportInfo>,
) -> Result<(Agreement, BytesMut), HandshakeError> {
    let mut input = BytesMut::with_capacity(READ_BYTES);
    let mut output = BytesMut::with_capacity(READ_BYTES);
    wire::encode_greeting(&mut output);
    stream.write_all_buf(&mut output).await?;
    fill(stream, &mut input, 4).await?;
    let mut negotiation = Negotiation::new(exports, wire::decode_client_flags(&input.split_to(4))?);

    for _ in 0..OPTIONS_MAX {
        fill(stream, &mut input, OPTION_HEADER_BYTES).await?;
        let header = wire::decode_option_header(&input.split_to(OPTION_HEADER_BYTES))?;
        let length_bytes = header.length_bytes;
        let step = if length_bytes > OPTION_DISCARD_BYTES_MAX {
            return Err(HandshakeError::OversizedOption { length_bytes });
        } else if length_bytes > OPTION_DATA_BYTES_MAX {
            discard(stream, &mut input, length_bytes as usize).await?;
            negotiation.too_big(header.option, &mut output)
        } else {
            fill(stream, &mut input, length_bytes as usize).await?;
            let data = input.split_to(length_bytes as usize);
            negotiation.handle(header.option, &data, &mut output)
        };
        let sent = stream.write_all_buf(&mut output).await;
        if header.option == wire::codes::OPT_ABORT {
            // Such a client need not wait for the answer.
            return Err(HandshakeError::Left);
        }
        sent?;
        match step {
            Step::Continue => {}
            Step::Enter(agreement) => return Ok((agreement, input)),
            Step::Close => return Err(HandshakeError::Refused),
        }
    }
    Err(HandshakeError::TooManyOptions)
}

/// Reads until `input` holds at least `wanted` bytes.
async fn fill<S: AsyncRead + Unpin>(
    stream: &mut S,
    input: &mut BytesMut,
    wanted: usize,
) -> Result<(), HandshakeError> {
    while input.len() < wanted {
        input.reserve(READ_BYTES);
        if stream.read_buf(input).await? == 0 {
            return Err(HandshakeError::Left);
        }
    }
    Ok(())
}

/// Drops the next `left` bytes.
async fn discard<S: AsyncRead + Unpin>(
    stream: &mut S,
    input: &mut BytesMut,
    mut left: usize,
) -> Result<(), HandshakeError> {
    loop {
        let here = left.min(input.len());
        input.advance(here);
        left -= here;
        if left == 0 {
            return Ok(());
        }
        fill(stream, input, 1).await?;
    }
}
