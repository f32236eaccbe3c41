//! Carries one checked command out on the backend and brings the result into the form of a reply.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    command::{self, Command},
    export::{Context, Errno, Export},
};

/// A request on its way through the backend.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) cookie: u64,
    pub(crate) command: Command,
    /// The data of a write, else empty.
    pub(crate) payload: Bytes,
}

/// A request that is done.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) cookie: u64,
    pub(crate) cost_bytes: usize,
    pub(crate) answer: Answer,
}

/// What the reply says.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Success without data, of a command other than READ and BLOCK_STATUS.
    Success,
    /// An error of a command other than READ and BLOCK_STATUS.
    Failure(Errno),
    /// An error of READ or BLOCK_STATUS, which structured replies tell apart from the above.
    DataFailure(Errno),
    /// Data that was read.
    Data { offset: u64, data: Bytes },
    /// The encoded descriptors of each context; at least one.
    Status(Vec<(Context, Bytes)>),
}

/// Runs `job` to its end.
pub(crate) async fn execute<E: Export>(export: &E, job: Job) -> Done {
    let Job { cookie, command, payload } = job;
    let done = |result: Result<(), Errno>| match result {
        Ok(()) => Answer::Success,
        Err(errno) => Answer::Failure(errno),
    };
    let answer = match command {
        Command::Nothing => Answer::Success,
        Command::Refused { errno } => Answer::DataFailure(errno),
        Command::Read { offset, length } => read(export, offset, length)
            .await
            .map_or_else(Answer::DataFailure, |data| Answer::Data { offset, data }),
        Command::Write { offset, fua, .. } => done(export.write(offset, payload, fua).await),
        Command::Flush => done(export.flush().await),
        Command::Trim { offset, length, fua } => done(export.trim(offset, length.into(), fua).await),
        Command::WriteZeroes { offset, length, flags } => {
            done(export.write_zeroes(offset, length.into(), flags).await)
        }
        Command::Cache { offset, length } => done(export.cache(offset, length.into()).await),
        Command::BlockStatus { offset, length, contexts, max_extents } => {
            let mut status = Vec::with_capacity(contexts.len());
            let mut failure = None;
            for context in contexts.iter() {
                match block_status(export, context, offset, length, max_extents).await {
                    Ok(descriptors) => status.push((context, descriptors)),
                    Err(errno) => {
                        failure = Some(errno);
                        break;
                    }
                }
            }
            failure.map_or(Answer::Status(status), Answer::DataFailure)
        }
    };
    Done { cookie, cost_bytes: command.cost_bytes(), answer }
}

async fn read<E: Export>(export: &E, offset: u64, length: u32) -> Result<Bytes, Errno> {
    if length == 0 {
        return Ok(Bytes::new());
    }
    let data = export.read(offset, length).await?;
    if data.len() != length as usize {
        tracing::error!(
            offset,
            wanted = length,
            got = data.len(),
            "the backend read a wrong number of bytes"
        );
        return Err(Errno::Io);
    }
    Ok(data)
}

async fn block_status<E: Export>(
    export: &E,
    context: Context,
    offset: u64,
    length: u32,
    max_extents: usize,
) -> Result<Bytes, Errno> {
    let extents = export.block_status(context, offset, length.into(), max_extents).await?;
    let mut out = BytesMut::with_capacity(extents.len().min(max_extents) * 8);
    let any = command::describe_extents(&extents, length, max_extents, |bytes, flags| {
        out.put_u32(bytes);
        out.put_u32(flags);
    });
    if !any {
        tracing::error!(offset, length, context = context.name(), "the backend gave no extents");
        return Err(Errno::Io);
    }
    Ok(out.freeze())
}
