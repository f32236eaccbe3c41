//! What of a group's changes somebody may want to hear of: a pure function of what is seen of it from time to time.

use std::time::Duration;

use afterimage_contract::hooks::Event;
use afterimage_contract::status::Protection;
use afterimage_protocol::Time;

/// How long a group that has just been opened may take until it is protected.
const START_GRACE_US: u64 = 10_000_000;

/// What is seen of a group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub protection: Protection,
    /// There is a session with the peer.
    pub connected: bool,
    /// The peer refuses the session because both hosts have writes of their own.
    pub split_brain: bool,
    /// The standby has had no checkpoint yet.
    pub first_sync: bool,
    /// Age of the oldest write that the standby lacks; `None` while that is not known.
    pub lag: Option<Duration>,
    /// The standby has all that was admitted, on stable storage.
    pub all_durable: bool,
}

/// What is remembered of the looks before.
#[derive(Debug)]
pub(crate) struct Alarms {
    rpo: Option<Duration>,
    began: Time,
    connected: bool,
    split_brain: bool,
    /// `None` before it was protected, or has had the time to be.
    protected: Option<bool>,
    /// The standby lacks nothing that was admitted before this. While that is not known the last that was is kept.
    safe_until: Time,
    /// Whether that was ever known of a standby that has a checkpoint.
    known: bool,
    breached: bool,
}

impl Alarms {
    /// Of a group that is opened now and has this objective.
    pub fn new(now: Time, rpo: Option<Duration>) -> Self {
        Self {
            rpo,
            began: now,
            connected: false,
            split_brain: false,
            protected: None,
            safe_until: now,
            known: false,
            breached: false,
        }
    }

    /// The objective is another from now on: that it is broken is told anew.
    pub fn set_rpo(&mut self, rpo: Option<Duration>) {
        if self.rpo != rpo {
            self.rpo = rpo;
            self.breached = false;
        }
    }

    /// The standby lacks nothing that was admitted before this; `None` while that was never known, and in a first sync.
    pub fn safe_until(&self) -> Option<Time> {
        self.known.then_some(self.safe_until)
    }

    /// For how long the standby has lacked writes: exact while the lag is known, the least that it can be otherwise.
    pub fn exposed_us(&self, now: Time) -> u64 {
        now.since_us(self.safe_until)
    }

    /// What has happened since the look before.
    pub fn look(&mut self, now: Time, look: &Look) -> Vec<Event> {
        let mut events = Vec::new();
        if self.connected && !look.connected {
            events.push(Event::LinkLost);
        }
        self.connected = look.connected;
        if look.split_brain && !self.split_brain {
            events.push(Event::SplitBrain);
        }
        self.split_brain = look.split_brain;
        events.extend(self.protection(now, look));
        events.extend(self.exposure(now, look));
        events
    }

    fn protection(&mut self, now: Time, look: &Look) -> Option<Event> {
        let late = !look.first_sync && now.since_us(self.began) >= START_GRACE_US;
        let (is, event) = match (self.protected, look.protection.is_healthy()) {
            (None, true) => (true, None),
            (None, false) if late => (false, Some(Event::ProtectionLost)),
            (Some(true), false) => (false, Some(Event::ProtectionLost)),
            (Some(false), true) => (true, Some(Event::ProtectionRegained)),
            _ => return None,
        };
        self.protected = Some(is);
        event
    }

    fn exposure(&mut self, now: Time, look: &Look) -> Option<Event> {
        let known = if look.all_durable || look.first_sync { Some(Duration::ZERO) } else { look.lag };
        self.known = !look.first_sync && (self.known || known.is_some());
        if let Some(lag) = known {
            self.safe_until = Time(now.0.saturating_sub(u64::try_from(lag.as_micros()).unwrap_or(u64::MAX)));
        }
        let over = Duration::from_micros(self.exposed_us(now)) > self.rpo?;
        let breach = over && !self.breached;
        self.breached = over;
        breach.then_some(Event::RpoBreach)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Look = Look {
        protection: Protection::AsyncStreaming,
        connected: true,
        split_brain: false,
        first_sync: false,
        lag: Some(Duration::ZERO),
        all_durable: false,
    };
    const CUT: Look = Look { protection: Protection::Disconnected, connected: false, lag: None, ..GOOD };
    const CATCHING_UP: Look = Look { protection: Protection::CatchingUp, lag: None, ..GOOD };
    const START: Time = Time(1_000_000_000);

    /// What happens in each second.
    fn seconds(rpo: Option<u64>, looks: &[Look]) -> Vec<(usize, Event)> {
        let mut alarms = Alarms::new(START, rpo.map(Duration::from_secs));
        let mut all = Vec::new();
        for (second, look) in looks.iter().enumerate() {
            let events = alarms.look(START.plus_us(1_000_000 * second as u64), look);
            all.extend(events.into_iter().map(|event| (second, event)));
        }
        all
    }

    #[test]
    fn a_cut_is_told_once_and_so_is_its_end() {
        let looks = [GOOD, CUT, CUT, CATCHING_UP, CATCHING_UP, GOOD, GOOD];
        let expected = [(1, Event::LinkLost), (1, Event::ProtectionLost), (5, Event::ProtectionRegained)];
        assert_eq!(seconds(None, &looks), expected);
    }

    #[test]
    fn a_start_in_good_order_tells_nothing() {
        assert_eq!(seconds(Some(60), &[CUT, CATCHING_UP, GOOD, GOOD]), []);
    }

    #[test]
    fn a_start_without_a_peer_is_told_after_a_while() {
        assert_eq!(seconds(None, &[CUT; 30]), [(10, Event::ProtectionLost)]);
    }

    #[test]
    fn a_first_sync_is_no_loss() {
        let first = Look { protection: Protection::FirstSync, first_sync: true, lag: None, ..GOOD };
        let mut looks = vec![first; 60];
        looks.extend([GOOD; 3]);
        assert_eq!(seconds(Some(5), &looks), []);
    }

    #[test]
    fn the_objective_is_broken_once_for_each_time() {
        let late = |s| Look { lag: Some(Duration::from_secs(s)), ..GOOD };
        let looks = [GOOD, late(5), late(6), late(7), late(1), late(6)];
        assert_eq!(seconds(Some(5), &looks), [(2, Event::RpoBreach), (5, Event::RpoBreach)]);
        assert_eq!(seconds(None, &looks), []);
    }

    #[test]
    fn another_objective_is_told_of_anew() {
        let mut alarms = Alarms::new(START, Some(Duration::from_secs(5)));
        let late = Look { lag: Some(Duration::from_secs(8)), ..GOOD };
        let look = |alarms: &mut Alarms| alarms.look(START, &late);
        assert_eq!(look(&mut alarms), [Event::RpoBreach]);
        alarms.set_rpo(Some(Duration::from_secs(5)));
        assert_eq!(look(&mut alarms), []);
        alarms.set_rpo(Some(Duration::from_secs(7)));
        assert_eq!(look(&mut alarms), [Event::RpoBreach]);
        alarms.set_rpo(None);
        assert_eq!(look(&mut alarms), []);
    }

    #[test]
    fn an_unknown_lag_counts_from_when_it_was_last_known() {
        let mut looks = vec![Look { lag: Some(Duration::from_secs(2)), ..GOOD }];
        looks.extend([CUT; 10]);
        let told: Vec<_> =
            seconds(Some(5), &looks).into_iter().filter(|(_, e)| *e == Event::RpoBreach).collect();
        // At second 4 it is 6 s: 2 before, and 4 since.
        assert_eq!(told, [(4, Event::RpoBreach)]);
    }

    #[test]
    fn without_writes_nothing_is_at_risk() {
        let idle = Look { all_durable: true, ..CUT };
        let told = seconds(Some(5), &[GOOD, idle, idle, idle, idle, idle, idle, idle, idle]);
        assert_eq!(told, [(1, Event::LinkLost), (1, Event::ProtectionLost)]);
    }

    #[test]
    fn until_when_the_standby_has_all_is_known_or_not() {
        let mut alarms = Alarms::new(START, None);
        let mut at = |second: u64, look: Look| {
            alarms.look(START.plus_us(1_000_000 * second), &look);
            alarms.safe_until()
        };
        assert_eq!(at(0, CUT), None, "nothing was ever known");
        assert_eq!(at(1, Look { first_sync: true, ..CATCHING_UP }), None, "there is no image yet");
        assert_eq!(at(2, GOOD), Some(START.plus_us(2_000_000)));
        let late = Look { lag: Some(Duration::from_secs(1)), ..GOOD };
        assert_eq!(at(3, late), Some(START.plus_us(2_000_000)));
        assert_eq!(at(9, CUT), Some(START.plus_us(2_000_000)), "it stands still while it is unknown");
        assert_eq!(at(10, Look { all_durable: true, ..CUT }), Some(START.plus_us(10_000_000)));
    }

    #[test]
    fn a_split_brain_is_told_once() {
        let split = Look { protection: Protection::Refused, split_brain: true, ..CUT };
        let told = seconds(None, &[CUT, split, split]);
        assert_eq!(told, [(1, Event::SplitBrain)]);
    }
}
