//! What a test writes into a block, so that whoever reads it back knows which write it was.

use xxhash_rust::xxh3::xxh3_64;

use crate::sim::Rng;

/// Bytes in a block.
pub const BLOCK_BYTES: usize = 4096;

/// One block's content.
pub type Block = [u8; BLOCK_BYTES];

const MAGIC: u64 = u64::from_le_bytes(*b"aftrimgT");
const HEADER_BYTES: usize = 40;
/// How much of a block is random; the rest is 0, so that compression has something to do.
const RANDOM_END: usize = BLOCK_BYTES / 2;

/// Which write a block is part of, and where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The write's number in its history, from 1.
    pub number: u64,
    /// The volume's place in its group.
    pub volume: u32,
    /// The block's index in the volume.
    pub block: u64,
}

/// Fills `block`: magic, run, number, volume, block index and a checksum of the whole, all little-endian, then bytes
/// that belong to this write and block only.
pub fn stamp(block: &mut Block, run: u64, stamp: Stamp) {
    let mut filler = Rng::new(run ^ stamp.number.rotate_left(32) ^ stamp.block);
    filler.fill(&mut block[HEADER_BYTES + 8..RANDOM_END]);
    block[RANDOM_END..].fill(0);
    let header = [MAGIC, run, stamp.number, u64::from(stamp.volume), stamp.block];
    for (slot, value) in block.chunks_exact_mut(8).zip(header) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
    let sum = checksum(block);
    block[HEADER_BYTES..HEADER_BYTES + 8].copy_from_slice(&sum.to_le_bytes());
}

/// Which write of `run` a block holds; `None` if it was never written (all 0). The error says what is wrong with it.
pub fn read(block: &Block, run: u64) -> Result<Option<Stamp>, String> {
    if block.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    let field = |index: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&block[index * 8..index * 8 + 8]);
        u64::from_le_bytes(bytes)
    };
    if field(0) != MAGIC {
        return Err("it holds bytes that no test wrote".to_owned());
    }
    let number = field(2);
    if field(5) != checksum(block) {
        return Err(format!("its checksum is wrong: damaged or torn; its header says write {number}"));
    }
    if field(1) != run {
        return Err(format!("it holds write {number} of another run"));
    }
    let volume = u32::try_from(field(3)).map_err(|_| "its volume is out of range".to_owned())?;
    Ok(Some(Stamp { number, volume, block: field(4) }))
}

/// The checksum of everything but itself.
fn checksum(block: &Block) -> u64 {
    xxh3_64(&block[..HEADER_BYTES]) ^ xxh3_64(&block[HEADER_BYTES + 8..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stamped_is_read_and_damage_is_seen() {
        let mut block = [7; BLOCK_BYTES];
        let wanted = Stamp { number: 9, volume: 1, block: 1 << 40 };
        stamp(&mut block, 3, wanted);
        assert_eq!(read(&block, 3), Ok(Some(wanted)));
        assert_eq!(read(&[0; BLOCK_BYTES], 3), Ok(None));
        assert!(read(&block, 4).unwrap_err().contains("another run"));
        assert!(read(&[1; BLOCK_BYTES], 3).unwrap_err().contains("no test wrote"));
        for byte in 8..BLOCK_BYTES {
            let mut bad = block;
            bad[byte] ^= 1;
            assert!(read(&bad, 3).is_err(), "byte {byte}");
        }
        let mut torn = block;
        stamp(&mut block, 3, Stamp { number: 10, ..wanted });
        torn[512..].copy_from_slice(&block[512..]);
        assert!(read(&torn, 3).unwrap_err().contains("torn"));
    }
}
