//! How many strangers may be in the middle of a handshake.
//!
//! A handshake costs a signature and some memory before anybody has proved anything. Slots are bounded, and few for
//! one sender, so that a flood from elsewhere leaves room for the peer. Senders whose address is not proved are first
//! asked to come back with a token (QUIC Retry), which costs no memory, as soon as there is any crowd: a forged
//! address cannot use up the slots of its owner.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Handshakes at a time.
const MAX_HALF_OPEN: usize = 64;
/// Handshakes at a time of one sender: a peer opens several connections at once.
const MAX_HALF_OPEN_OF_ONE: usize = 16;
/// From so many on, an address must be proved first.
const RETRY_FROM: usize = 16;
/// The same for one sender.
const RETRY_FROM_OF_ONE: usize = 4;

/// What to do with a connection that begins.
#[derive(Debug)]
pub(crate) enum Intake {
    /// Go on with the handshake; the slot is free again when this is dropped.
    Accept(Slot),
    /// Have the sender prove its address.
    Retry,
    /// There are too many.
    Refuse,
}

/// The handshakes that are under way.
#[derive(Debug, Default, Clone)]
pub(crate) struct HalfOpen {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A place among the handshakes under way.
#[derive(Debug)]
pub(crate) struct Slot {
    half_open: HalfOpen,
    sender: IpAddr,
}

impl HalfOpen {
    pub(crate) fn take(&self, address: IpAddr, address_proved: bool) -> Intake {
        let sender = sender(address);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        // At most MAX_HALF_OPEN entries.
        let all: usize = counts.values().sum();
        let own = counts.get(&sender).copied().unwrap_or(0);
        if !address_proved && (all >= RETRY_FROM || own >= RETRY_FROM_OF_ONE) {
            return Intake::Retry;
        }
        if all >= MAX_HALF_OPEN || own >= MAX_HALF_OPEN_OF_ONE {
            return Intake::Refuse;
        }
        counts.insert(sender, own + 1);
        Intake::Accept(Slot { half_open: self.clone(), sender })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.half_open.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.sender) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.sender);
            }
        }
    }
}

/// Whom an address counts for: an IPv6 host has its whole /64 to choose from.
fn sender(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(prefix))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn taken(half_open: &HalfOpen, address: IpAddr, proved: bool) -> Option<Slot> {
        match half_open.take(address, proved) {
            Intake::Accept(slot) => Some(slot),
            Intake::Retry | Intake::Refuse => None,
        }
    }

    #[test]
    fn one_sender_leaves_room_for_others() {
        let half_open = HalfOpen::default();
        let slots: Vec<_> = (0..1000).filter_map(|_| taken(&half_open, ip(1), true)).collect();
        assert_eq!(slots.len(), MAX_HALF_OPEN_OF_ONE);
        assert!(matches!(half_open.take(ip(1), true), Intake::Refuse));
        assert!(taken(&half_open, ip(2), true).is_some());
    }

    #[test]
    fn unproved_addresses_take_few_slots_and_are_asked_to_prove() {
        let half_open = HalfOpen::default();
        let of_one: Vec<_> = (0..100).filter_map(|_| taken(&half_open, ip(1), false)).collect();
        assert_eq!(of_one.len(), RETRY_FROM_OF_ONE);
        let of_all: Vec<_> = (2..=255).filter_map(|n| taken(&half_open, ip(n), false)).collect();
        assert_eq!(of_one.len() + of_all.len(), RETRY_FROM);
        assert!(matches!(half_open.take(ip(200), false), Intake::Retry));
        assert!(taken(&half_open, ip(1), true).is_some(), "the owner of a forged address still gets in");
    }

    #[test]
    fn all_together_are_bounded_and_slots_come_back() {
        let half_open = HalfOpen::default();
        let slots: Vec<_> = (0..=255).filter_map(|n| taken(&half_open, ip(n), true)).collect();
        assert_eq!(slots.len(), MAX_HALF_OPEN);
        drop(slots);
        assert!(half_open.counts.lock().unwrap().is_empty());
        assert!(taken(&half_open, ip(1), false).is_some());
    }

    #[test]
    fn an_ipv6_host_is_one_sender_and_a_mapped_one_its_ipv4_self() {
        let a: IpAddr = "2001:db8::1".parse().unwrap();
        let b: IpAddr = "2001:db8::ffff:2".parse().unwrap();
        let c: IpAddr = "2001:db8:0:1::1".parse().unwrap();
        assert_eq!(sender(a), sender(b));
        assert_ne!(sender(a), sender(c));
        assert_eq!(sender("::ffff:192.0.2.7".parse().unwrap()), ip(7));
    }
}
