//! Checks a request against what was agreed on, before the backend sees anything of it. Pure.

use crate::{
    contexts::ContextSet,
    export::{Errno, Extent, ZeroFlags},
    geometry::Geometry,
    negotiation::Agreement,
    wire::{RequestHeader, codes::*},
};

/// Extents in one answer to BLOCK_STATUS, for each context. 16 Ki of them are 128 KiB on the wire: a client that
/// maps a fragmented volume gets on with few round trips, and the answer stays smaller than a usual read.
pub(crate) const EXTENTS_MAX: usize = 16 << 10;

/// A request that may be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Nothing is to be done: a length of 0. Succeeds.
    Nothing,
    /// A READ or BLOCK_STATUS that is answered with an error.
    Refused {
        errno: Errno,
    },
    Read {
        offset: u64,
        length: u32,
    },
    Write {
        offset: u64,
        length: u32,
        fua: bool,
    },
    Flush,
    Trim {
        offset: u64,
        length: u32,
        fua: bool,
    },
    WriteZeroes {
        offset: u64,
        length: u32,
        flags: ZeroFlags,
    },
    Cache {
        offset: u64,
        length: u32,
    },
    BlockStatus {
        offset: u64,
        length: u32,
        contexts: ContextSet,
        max_extents: usize,
    },
}

impl Command {
    /// What the request and its reply hold in memory, in bytes, beside the fixed costs of a request.
    pub(crate) fn cost_bytes(&self) -> usize {
        match *self {
            Self::Read { length, .. } | Self::Write { length, .. } => length as usize,
            Self::BlockStatus { contexts, max_extents, .. } => {
                contexts.len() * max_extents * size_of::<Extent>()
            }
            _ => 0,
        }
    }
}

/// Decides what `request` means under `agreement`, or with which error it is answered.
///
/// `CMD_DISC` has no reply and is not for here. A payload that follows a refused write is the caller's to drop.
pub(crate) fn check(request: &RequestHeader, agreement: &Agreement) -> Result<Command, Errno> {
    let has = |flag: u16| request.flags & flag != 0;
    // The protocol wants FUA accepted with every command once it was offered.
    let allowed = CMD_FLAG_FUA
        | match request.command {
            CMD_READ if agreement.structured => CMD_FLAG_DF,
            CMD_WRITE_ZEROES => CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
            CMD_BLOCK_STATUS => CMD_FLAG_REQ_ONE,
            _ => 0,
        };
    if has(!allowed) {
        return Err(Errno::Inval);
    }

    let geometry = &agreement.geometry;
    let (offset, length, fua) = (request.offset_bytes, request.length_bytes, has(CMD_FLAG_FUA));
    let writes = matches!(request.command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
    let carries_data = matches!(request.command, CMD_READ | CMD_WRITE);
    match request.command {
        // Offset and length are reserved and must be ignored.
        CMD_FLUSH => return Ok(Command::Flush),
        CMD_READ | CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES | CMD_CACHE | CMD_BLOCK_STATUS => {}
        _ => return Err(Errno::Inval),
    }
    if writes && geometry.read_only {
        return Err(Errno::Perm);
    }
    if carries_data && length > geometry.max_block {
        return Err(Errno::Inval);
    }
    check_range(geometry, offset, length, if writes { Errno::NoSpc } else { Errno::Inval })?;

    Ok(match request.command {
        CMD_BLOCK_STATUS if length == 0 || agreement.contexts.len() == 0 => return Err(Errno::Inval),
        CMD_BLOCK_STATUS => Command::BlockStatus {
            offset,
            length,
            contexts: agreement.contexts,
            max_extents: if has(CMD_FLAG_REQ_ONE) { 1 } else { EXTENTS_MAX },
        },
        CMD_READ => Command::Read { offset, length },
        _ if length == 0 => Command::Nothing,
        CMD_WRITE => Command::Write { offset, length, fua },
        CMD_TRIM => Command::Trim { offset, length, fua },
        CMD_CACHE => Command::Cache { offset, length },
        _ => {
            let flags = ZeroFlags { no_hole: has(CMD_FLAG_NO_HOLE), fast: has(CMD_FLAG_FAST_ZERO), fua };
            Command::WriteZeroes { offset, length, flags }
        }
    })
}

fn check_range(geometry: &Geometry, offset: u64, length: u32, beyond_end: Errno) -> Result<(), Errno> {
    let end = offset.checked_add(length.into()).ok_or(beyond_end)?;
    if end > geometry.size_bytes {
        return Err(beyond_end);
    }
    let min_block = u64::from(geometry.min_block);
    let aligned = offset.is_multiple_of(min_block) && end.is_multiple_of(min_block);
    if aligned { Ok(()) } else { Err(Errno::Inval) }
}

/// Calls `put` with the length and flags of each descriptor of `extents`: neighbours with the same flags joined, at
/// most `max_extents`, and nothing beyond `length` bytes. Returns whether there was at least one.
pub(crate) fn describe_extents(
    extents: &[Extent],
    length: u32,
    max_extents: usize,
    mut put: impl FnMut(u32, u32),
) -> bool {
    let mut left = u64::from(length);
    let mut run: Option<(u64, u32)> = None;
    let mut written = 0;
    for extent in extents {
        let here = extent.len_bytes.min(left);
        if here == 0 {
            continue;
        }
        match &mut run {
            Some((run_bytes, flags)) if *flags == extent.flags => *run_bytes += here,
            _ => {
                if written + usize::from(run.is_some()) == max_extents {
                    break;
                }
                if let Some(done) = run.replace((here, extent.flags)) {
                    put_run(done, &mut put);
                    written += 1;
                }
            }
        }
        left -= here;
    }
    let Some(last) = run else { return false };
    put_run(last, &mut put);
    true
}

/// A run is no longer than the request, whose length has 32 bits.
fn put_run((run_bytes, flags): (u64, u32), put: &mut impl FnMut(u32, u32)) {
    put(u32::try_from(run_bytes).unwrap_or(u32::MAX), flags);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::Context;

    fn agreement(read_only: bool, min_block: u32) -> Agreement {
        let mut contexts = ContextSet::default();
        contexts.insert(Context::Dirty);
        let geometry =
            Geometry { size_bytes: 1 << 20, min_block, preferred_block: 4096, max_block: 65536, read_only };
        Agreement { export: 0, geometry, structured: true, contexts }
    }

    fn request(command: u16, flags: u16, offset_bytes: u64, length_bytes: u32) -> RequestHeader {
        RequestHeader { flags, command, cookie: 9, offset_bytes, length_bytes }
    }

    #[test]
    fn ranges_are_checked_without_overflow() {
        let agreement = agreement(false, 1);
        let run = |command, offset, length| check(&request(command, 0, offset, length), &agreement);
        assert_eq!(run(CMD_READ, 1 << 20, 1), Err(Errno::Inval));
        assert_eq!(run(CMD_READ, u64::MAX, 1), Err(Errno::Inval));
        assert_eq!(run(CMD_WRITE, u64::MAX, 1), Err(Errno::NoSpc));
        assert_eq!(run(CMD_WRITE_ZEROES, 1, 1 << 20), Err(Errno::NoSpc));
        assert_eq!(run(CMD_TRIM, 0, 1 << 20), Ok(Command::Trim { offset: 0, length: 1 << 20, fua: false }));
        assert_eq!(run(CMD_READ, 0, 65537), Err(Errno::Inval));
        assert_eq!(run(CMD_READ, (1 << 20) - 1, 1), Ok(Command::Read { offset: (1 << 20) - 1, length: 1 }));
        assert_eq!(run(CMD_WRITE, 1 << 20, 0), Ok(Command::Nothing));
    }

    #[test]
    fn alignment_is_checked_at_both_ends() {
        let agreement = agreement(false, 512);
        let run = |offset, length| check(&request(CMD_CACHE, 0, offset, length), &agreement).is_ok();
        assert!(run(512, 1024));
        assert!(!run(511, 1024));
        assert!(!run(512, 1023));
        assert!(!run(1, 511));
    }

    #[test]
    fn flags_belong_to_their_commands() {
        let agreement = agreement(false, 1);
        let run = |command, flags| check(&request(command, flags, 0, 512), &agreement);
        for command in
            [CMD_READ, CMD_WRITE, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS]
        {
            assert!(run(command, CMD_FLAG_FUA).is_ok(), "FUA with command {command}");
            assert_eq!(run(command, 1 << 5), Err(Errno::Inval), "PAYLOAD_LEN with command {command}");
        }
        assert_eq!(run(CMD_WRITE, CMD_FLAG_NO_HOLE), Err(Errno::Inval));
        assert_eq!(run(CMD_WRITE, CMD_FLAG_DF), Err(Errno::Inval));
        assert_eq!(run(CMD_READ, CMD_FLAG_REQ_ONE), Err(Errno::Inval));
        assert!(run(CMD_READ, CMD_FLAG_DF).is_ok());
        let simple = Agreement { structured: false, ..agreement };
        assert_eq!(check(&request(CMD_READ, CMD_FLAG_DF, 0, 512), &simple), Err(Errno::Inval));
    }

    #[test]
    fn nothing_that_writes_passes_on_a_read_only_export() {
        let agreement = agreement(true, 1);
        for command in [CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES] {
            assert_eq!(check(&request(command, 0, 0, 0), &agreement), Err(Errno::Perm));
        }
        assert!(check(&request(CMD_FLUSH, 0, 0, 0), &agreement).is_ok());
    }

    #[test]
    fn unknown_commands_are_refused() {
        for command in [8, 9, 255, u16::MAX] {
            assert_eq!(check(&request(command, 0, 0, 0), &agreement(false, 1)), Err(Errno::Inval));
        }
    }

    #[test]
    fn extents_are_joined_cut_and_counted() {
        let describe = |extents: &[(u64, u32)], length, max| {
            let extents: Vec<_> =
                extents.iter().map(|&(len_bytes, flags)| Extent { len_bytes, flags }).collect();
            let mut out = Vec::new();
            let any = describe_extents(&extents, length, max, |bytes, flags| out.push((bytes, flags)));
            assert_eq!(any, !out.is_empty());
            out
        };
        assert_eq!(describe(&[(10, 1), (5, 1), (0, 0), (7, 0)], 100, 9), [(15, 1), (7, 0)]);
        assert_eq!(describe(&[(10, 1), (u64::MAX, 0), (1, 1)], 100, 9), [(10, 1), (90, 0)]);
        assert_eq!(describe(&[(1, 0), (1, 1), (1, 0)], 100, 2), [(1, 0), (1, 1)]);
        assert_eq!(describe(&[(1, 0), (1, 0), (1, 1)], 100, 1), [(2, 0)]);
        assert_eq!(describe(&[(0, 0)], 100, 9), []);
    }
}
