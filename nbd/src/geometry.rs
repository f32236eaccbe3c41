//! Size and block sizes of an export, brought to what the protocol allows.

use crate::{export::ExportInfo, wire::codes::*};

/// The largest minimum block of the protocol.
const MIN_BLOCK_MAX: u32 = 64 << 10;
/// The protocol wants at least 512.
const PREFERRED_BLOCK_MIN: u32 = 512;
/// The protocol's bound on the preferred size.
const PREFERRED_BLOCK_MAX: u32 = 32 << 20;
/// Twice what common clients send at most; one request costs that much memory.
const MAX_BLOCK_MAX: u32 = 64 << 20;

/// What requests of a connection are checked against. Fixed when the connection chose its export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) size_bytes: u64,
    pub(crate) min_block: u32,
    pub(crate) preferred_block: u32,
    pub(crate) max_block: u32,
    pub(crate) read_only: bool,
}

impl Geometry {
    pub(crate) fn of(info: &ExportInfo) -> Self {
        let min_block = info.min_block.clamp(1, MIN_BLOCK_MAX).next_power_of_two();
        let preferred_block = info
            .preferred_block
            .clamp(PREFERRED_BLOCK_MIN.max(min_block), PREFERRED_BLOCK_MAX)
            .next_power_of_two();
        let max_block = info.max_block.clamp(preferred_block, MAX_BLOCK_MAX);
        Self {
            size_bytes: info.size_bytes - info.size_bytes % u64::from(min_block),
            min_block,
            preferred_block,
            max_block: max_block - max_block % min_block,
            read_only: info.read_only,
        }
    }

    /// The transmission flags. "Do not fragment" may only be offered after structured replies were negotiated.
    pub(crate) fn transmission_flags(&self, structured: bool) -> u16 {
        let mut flags =
            FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_SEND_FUA | FLAG_CAN_MULTI_CONN | FLAG_SEND_CACHE;
        flags |= if self.read_only {
            FLAG_READ_ONLY
        } else {
            FLAG_SEND_TRIM | FLAG_SEND_WRITE_ZEROES | FLAG_SEND_FAST_ZERO
        };
        if structured {
            flags |= FLAG_SEND_DF;
        }
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_block_sizes_are_brought_into_bounds() {
        let info = ExportInfo {
            size_bytes: 1_000_001,
            min_block: 600,
            preferred_block: 0,
            max_block: u32::MAX,
            ..ExportInfo::default()
        };
        let geometry = Geometry::of(&info);
        assert_eq!(
            (geometry.min_block, geometry.preferred_block, geometry.max_block),
            (1024, 1024, 64 << 20)
        );
        assert_eq!(geometry.size_bytes, 999_424);
    }

    #[test]
    fn the_default_is_kept() {
        let geometry = Geometry::of(&ExportInfo { size_bytes: 7, ..ExportInfo::default() });
        assert_eq!((geometry.min_block, geometry.preferred_block, geometry.max_block), (1, 4096, 32 << 20));
        assert_eq!(geometry.size_bytes, 7);
    }
}
