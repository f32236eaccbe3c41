//! What clients ask for: writes of whole sectors to the tracked blocks, and flushes.

use afterimage_protocol::frame::Content;
use afterimage_protocol::source::{RequestId, Write};
use afterimage_protocol::*;
use afterimage_storage::group::content_of;

use super::super::model::*;
use super::{Primary, Request};
use crate::sim::Rng;

/// Clients that write in bursts do so for this long, in microseconds, and for twice as long not.
const BURST_US: u64 = 400_000;

impl Primary {
    /// A client asks for something.
    pub fn client(&mut self, rng: &mut Rng, history: &mut History, now: Time) {
        let Some(p) = &mut self.process else { return };
        if p.requests.len() >= 6 || (self.shape.bursts && !(now.0 / BURST_US).is_multiple_of(3)) {
            return;
        }
        self.next_request += 1;
        let request = RequestId(self.next_request);
        if rng.chance(if self.shape.unflushed { 0.01 } else { 0.12 }) {
            let volume = VolumeIndex(rng.below(2) as u32);
            let covers = self.acked.iter().filter(|(s, _)| BLOCKS[**s / 8].0 == volume.0);
            let covers = covers.map(|(s, q)| (*s, *q)).collect();
            let need = self.acked_last[volume.0 as usize];
            p.requests.insert(request, (Request::Flush { covers, need }, None));
            p.source.flush(now, request, volume);
        } else {
            let two_extents = self.shape.two_extents && rng.chance(0.2);
            let (volume, block) = match *rng.pick(&BLOCKS) {
                _ if two_extents => LAST_OF_EXTENT,
                // Nothing else makes the second extent hot.
                NEXT_EXTENT if self.shape.two_extents => BLOCKS[0],
                other => other,
            };
            let size = p.sizes[volume as usize];
            let (from, sectors) = match rng.below(4) {
                _ if two_extents => (0, 16),
                0 => (rng.below(8), 1 + rng.below(4)),
                1 => (0, 16),
                _ => (0, 8),
            };
            let offset = (block * BLOCK_BYTES + from * SECTOR_BYTES).min(size - SECTOR_BYTES);
            let length = (sectors * SECTOR_BYTES).min(size - offset);
            let range = ByteRange::new(VolumeIndex(volume), offset, length);
            let zero = rng.chance(0.1);
            let content = if zero {
                Content::Zeroes { punch: rng.coin() }
            } else {
                self.next_value += 1;
                content_of(fill(self.next_value, length).into())
            };
            let fua = !self.shape.unflushed && rng.chance(0.1);
            p.requests.insert(request, (Request::Write { range, fua }, None));
            p.source.write(now, request, Write { range, content, fua });
        }
        self.drain(history);
    }
}
