//! Finding out, at a start, what the journal holds.
//!
//! Segments are put into the chain that their names describe, and their entries are read in order until one cannot be
//! read. Whether that place is a **torn tail** or **damage** is decided by what is known to have been durable: the
//! most that is claimed by the `durable` and `start` files, and by every segment header and entry that can be made
//! out from that place on (those in front of it know of nothing behind it). At or above all claims the bytes were
//! never promised to be there, and whatever survived behind them is cut too. Below one of them, they were.
//!
//! Only reads, but for clearing away what was never finished. What follows from it is done by [`super::Journal::open`].

use std::sync::Arc;

use afterimage_protocol::Lsn;

use super::bytes::{Window, get_u32};
use super::damage::{Damage, JoinedRanges, Lost};
use super::entry::{ALIGNMENT, MAGIC};
use super::error::JournalError;
use super::mark::{self, Mark};
use super::reader::{EntryRead, read_entry, read_header};
use super::segment::{SEGMENT_HEADER_BYTES, Segment, SegmentHeader, SegmentId, SegmentName, UNFINISHED};
use super::{DURABLE_FILE, Entry, START_FILE};
use crate::io::{Dir, Open};

/// What was found.
pub(super) struct Found {
    /// The segments that hold entries of the journal, in order; the last one's `end` is that of the journal.
    pub segments: Vec<Segment>,
    /// Segments that are not part of the journal any more once `start` is stored and a new segment begins at `end` or
    /// before.
    pub dead: Vec<SegmentName>,
    /// An id that was never used.
    pub next_id: SegmentId,
    /// The first lsn.
    pub start: Lsn,
    /// The claim that says so, visible but perhaps not durable; none until the journal's first open is over.
    pub start_mark: Option<Mark>,
    /// The first lsn after the last entry that survives.
    pub end: Lsn,
    /// An entry boundary in `start..=end` below which all is on stable storage.
    pub durable: Lsn,
    /// Entries below what was durable cannot be read; and the segment to keep for a look at it.
    pub damage: Option<(Damage, Option<Segment>)>,
}

/// Reads the journal in `dir`, calling `visit` for each entry that survives.
pub(super) fn recover(dir: &dyn Dir, visit: &mut dyn FnMut(Entry<'_>)) -> Result<Found, JournalError> {
    let names = segment_names(dir)?;
    let (durable_exists, durable_marks) = mark::load(dir, DURABLE_FILE)?;
    let (start_exists, start_marks) = mark::load(dir, START_FILE)?;
    let start_mark = start_marks.iter().copied().max_by_key(|m| m.within(&names));
    let stored_start = start_mark.map(|m| m.within(&names));
    let marks: Vec<Mark> = durable_marks.into_iter().chain(start_marks).collect();
    let ids = names.iter().map(|n| n.id).chain(marks.iter().map(|m| m.segment));
    let next_id = ids.max().unwrap_or(SegmentId(0)).next();

    let (mut chain, mut dead) = open_chain(dir, &names, stored_start.unwrap_or(Lsn(0)))?;
    let first_base = chain.first().map(|link| link.segment.base());
    let start = stored_start.or(first_base).unwrap_or(Lsn(0));
    let mut claims = Claims { segments: &names, most: start };
    marks.iter().for_each(|m| claims.add(m.segment, m.lsn));

    let stop = walk(&mut chain, start, visit)?;
    claims_behind(&mut chain, &stop, &mut claims)?;
    let known = claims.most;
    // A journal that ever was has a segment, and one begins at its start: that there is none is damage even where no
    // claim says so.
    let ever_was = start_exists || durable_exists;
    let beheaded = ever_was && first_base != Some(start);
    // A segment gets its name after its header is on stable storage, and without the header nothing in it can be made out.
    let headless = chain.iter().skip(stop.link).any(|link| matches!(link.header, SegmentHeader::Damaged));
    let damage = if known > stop.at || beheaded || headless {
        let unknown = beheaded || headless;
        let lost = if unknown { Lost::Unknown } else { account(&mut chain, stop.at, known)? };
        let damaged = chain.get(stop.link).map(|link| link.segment.clone());
        Some((Damage { at: stop.at, durable_end: known.max(stop.at), lost }, damaged))
    } else {
        None
    };

    let (mut segments, cut): (Vec<Segment>, Vec<Segment>) =
        chain.into_iter().map(|link| link.segment).partition(|s| s.base() < stop.at);
    segments.iter_mut().for_each(|s| s.end = s.end.min(stop.at));
    dead.extend(cut.into_iter().map(|s| s.name));
    Ok(Found {
        segments,
        dead,
        next_id,
        start,
        start_mark,
        end: stop.at,
        durable: known.min(stop.at),
        damage,
    })
}

/// A segment of the chain, being looked at.
struct Link {
    segment: Segment,
    header: SegmentHeader,
    window: Window,
    /// From here on a later segment counts.
    limit: Option<Lsn>,
}

/// The most that is claimed to have been durable.
struct Claims<'a> {
    segments: &'a [SegmentName],
    most: Lsn,
}

impl Claims<'_> {
    fn add(&mut self, segment: SegmentId, lsn: Lsn) {
        self.most = self.most.max(Mark { segment, lsn }.within(self.segments));
    }
}

/// Where reading in order came to its end.
struct Stop {
    /// Index of the link that should hold `at`; the count of links when none should.
    link: usize,
    at: Lsn,
}

/// The names of all segments in order of their ids; clears away what was never finished.
fn segment_names(dir: &dyn Dir) -> Result<Vec<SegmentName>, JournalError> {
    let mut names = Vec::new();
    for name in dir.list().map_err(JournalError::io("list", "."))? {
        if name.ends_with(UNFINISHED) {
            dir.remove(&name).map_err(JournalError::io("remove", &name))?;
        }
        names.extend(SegmentName::parse(&name));
    }
    names.sort();
    Ok(names)
}

/// Opens the segments that are not superseded as a whole and do not lie before `start` as a whole.
fn open_chain(
    dir: &dyn Dir,
    names: &[SegmentName],
    start: Lsn,
) -> Result<(Vec<Link>, Vec<SegmentName>), JournalError> {
    let (mut chain, mut dead) = (Vec::new(), Vec::new());
    let mut limit: Option<Lsn> = None;
    for name in names.iter().rev() {
        if limit.is_some_and(|limit| name.base >= limit || limit <= start) {
            dead.push(name.clone());
            continue;
        }
        chain.push(open_link(dir, name, limit)?);
        limit = Some(name.base);
    }
    chain.reverse();
    Ok((chain, dead))
}

fn open_link(dir: &dyn Dir, name: &SegmentName, limit: Option<Lsn>) -> Result<Link, JournalError> {
    let path = name.file();
    let file = dir.open_log(&path, Open::Existing).map_err(JournalError::io("open", &path))?;
    let file_bytes = file.len().map_err(JournalError::io("measure", &path))?;
    let mut segment = Segment {
        name: name.clone(),
        end: limit.unwrap_or(Lsn(u64::MAX)),
        salt: 0,
        binds: false,
        suspect: false,
        file_bytes,
        file: Arc::clone(&file),
    };
    let readable = file_bytes.min(segment.offset(segment.end));
    let mut window = Window::new(file, readable);
    let bytes = window.get(0, SEGMENT_HEADER_BYTES).map_err(JournalError::io("read", &path))?;
    let header = SegmentHeader::decode(bytes.unwrap_or_default(), name);
    if let SegmentHeader::Version(version) = header {
        return Err(JournalError::Version { file: path, version });
    }
    if let SegmentHeader::Whole { salt, binds, .. } = header {
        (segment.salt, segment.binds) = (salt, binds);
    }
    segment.end = limit.unwrap_or(name.base);
    // There may be very many.
    window.forget();
    Ok(Link { segment, header, window, limit })
}

/// Visits the entries in order until one cannot be read.
fn walk(chain: &mut [Link], start: Lsn, visit: &mut dyn FnMut(Entry<'_>)) -> Result<Stop, JournalError> {
    let mut at = start;
    for (index, link) in chain.iter_mut().enumerate() {
        let base = link.segment.base();
        let SegmentHeader::Whole { .. } = link.header else {
            return Ok(Stop { link: index, at });
        };
        if base != at {
            return Ok(Stop { link: index, at });
        }
        while link.limit.is_none_or(|limit| at < limit) {
            let entry = read_entry(&mut link.window, &link.segment, at)
                .map_err(JournalError::io("read", &link.segment.name.file()))?;
            let EntryRead::Whole(header, frame) = entry else {
                break;
            };
            visit(Entry { start: at, end: header.end(), frame: &frame });
            at = header.end();
        }
        if link.limit != Some(at) {
            link.segment.end = at;
            return Ok(Stop { link: index, at });
        }
        link.window.forget();
    }
    Ok(Stop { link: chain.len(), at })
}

/// Takes in the claims of all that can be made out behind `stop`.
fn claims_behind(chain: &mut [Link], stop: &Stop, claims: &mut Claims<'_>) -> Result<(), JournalError> {
    for (index, link) in chain.iter_mut().enumerate().skip(stop.link) {
        let id = link.segment.name.id;
        if let SegmentHeader::Whole { durable, .. } = link.header {
            claims.add(id, durable);
        }
        let mut at = link.segment.base();
        if index == stop.link {
            at = at.max(stop.at);
        }
        let name = link.segment.name.file();
        while let Some(found) = next_magic(link, at).map_err(JournalError::io("read", &name))? {
            at = Lsn(found.0 + ALIGNMENT);
            let header = read_header(&mut link.window, &link.segment, found)
                .map_err(JournalError::io("read", &name))?;
            if let Some(header) = header {
                claims.add(id, header.durable);
                at = header.end();
            }
        }
    }
    Ok(())
}

/// The first place at or after `at` that looks like an entry.
fn next_magic(link: &mut Link, at: Lsn) -> std::io::Result<Option<Lsn>> {
    let mut at = at;
    loop {
        let words = link.window.rest(link.segment.offset(at), ALIGNMENT)?.chunks_exact(ALIGNMENT as usize);
        if words.len() == 0 {
            return Ok(None);
        }
        for word in words {
            if get_u32(word, 0) == Some(MAGIC) {
                return Ok(Some(at));
            }
            at = Lsn(at.0 + ALIGNMENT);
        }
    }
}

/// What the entries from `at` to at least `durable_end` wrote.
fn account(chain: &mut [Link], at: Lsn, durable_end: Lsn) -> Result<Lost, JournalError> {
    let mut ranges = JoinedRanges::default();
    let mut at = at;
    loop {
        let holder = chain
            .iter_mut()
            .find(|link| link.segment.base() <= at && link.limit.is_none_or(|limit| at < limit));
        let header = match holder {
            Some(link) => read_header(&mut link.window, &link.segment, at)
                .map_err(JournalError::io("read", &link.segment.name.file()))?,
            None => None,
        };
        let Some(header) = header else {
            break;
        };
        if let Some(range) = header.range {
            ranges.add(range);
        }
        at = header.end();
    }
    Ok(if at >= durable_end { ranges.finish() } else { Lost::Unknown })
}
