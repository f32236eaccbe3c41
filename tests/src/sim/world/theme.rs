//! What a run may concentrate on: some faults are frequent and the others rare or absent, and the world has the shape in
//! which they do most harm.

use super::faults::Fault;
use crate::sim::Rng;

/// A history that no run outlives by much.
const LONG_US: u64 = 10_000_000;

/// One such choice. A rule of which only one of them can tell whether it is kept names it (`sim::cases`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Theme {
    /// The standby loses its power, and its syncs take long.
    StandbyPower,
    /// The standby is killed and then loses its power.
    StandbyTwice,
    /// A sync of the journal fails, and then the power.
    SyncThenPower,
    /// The primary is killed and then loses its power.
    PrimaryTwice,
    /// The same, without a link.
    PrimaryAlone,
    /// The primary loses its power again and again.
    PrimaryPower,
    /// The local disk is slower than the link, and the primary is killed.
    SlowWrites,
    /// Writes go over two extents, and the primary loses its power.
    TwoExtents,
    /// Writes to the primary's volumes fail.
    VolumeFails,
    /// Flushes of them fail.
    FlushFails,
    /// The roles change, and the old primary loses its power.
    SwitchOver,
    /// The hot-extent log fails while there is no link.
    HotLogFails,
    /// The same, but the connections end at a commit, and clients seldom write.
    HotLogAtCommit,
    /// Connections end at a commit.
    CommitLost,
    /// Connections end, and what was under way comes late.
    LateFrames,
    /// The standby loses its power within the first sync.
    FirstSync,
    /// The standby is promoted, with power cuts on the way.
    Promote,
    /// A journal that holds much is damaged.
    Damage,
    /// A journal is damaged, and the connection ends before the source hears of it.
    DamageUnheard,
    /// A journal is damaged, and the primary loses its power.
    DamagePower,
    /// An old copy comes back.
    OldCopy,
    /// An old copy comes back when the primary's last note is on its way.
    OldCopyAtNote,
    /// An old copy comes back that two sessions followed.
    OldSessions,
    /// A record is lost on its way.
    LostRecord,
    /// The copies are verified again and again.
    Verify,
    /// The standby is promoted, and that is taken back.
    RollBack,
    /// The standby is promoted at an older point, and the old primary comes home.
    PromoteAt,
    /// The volumes grow, and mostly nothing else happens but that either process is killed, or without power, on the way.
    Grow,
}

impl Theme {
    const ALL: [Theme; 28] = [
        Theme::StandbyPower,
        Theme::StandbyTwice,
        Theme::SyncThenPower,
        Theme::PrimaryTwice,
        Theme::PrimaryAlone,
        Theme::PrimaryPower,
        Theme::SlowWrites,
        Theme::TwoExtents,
        Theme::VolumeFails,
        Theme::FlushFails,
        Theme::SwitchOver,
        Theme::HotLogFails,
        Theme::HotLogAtCommit,
        Theme::CommitLost,
        Theme::LateFrames,
        Theme::FirstSync,
        Theme::Promote,
        Theme::Damage,
        Theme::DamageUnheard,
        Theme::DamagePower,
        Theme::OldCopy,
        Theme::OldCopyAtNote,
        Theme::OldSessions,
        Theme::LostRecord,
        Theme::Verify,
        Theme::RollBack,
        Theme::PromoteAt,
        Theme::Grow,
    ];

    /// Any.
    pub fn choose(rng: &mut Rng) -> Self {
        *rng.pick(&Self::ALL)
    }

    /// The frequent faults.
    pub fn faults(self) -> &'static [Fault] {
        match self {
            Theme::StandbyTwice => &[Fault::StandbyTwice],
            Theme::SyncThenPower => &[Fault::SyncThenPower],
            Theme::PrimaryTwice => &[Fault::PrimaryTwice],
            Theme::PrimaryAlone => &[Fault::PrimaryTwice, Fault::CutLink, Fault::PowerPrimary],
            Theme::PrimaryPower | Theme::TwoExtents => &[Fault::PowerPrimary],
            Theme::SlowWrites => &[Fault::KillPrimary],
            Theme::VolumeFails => &[Fault::VolumeFails],
            Theme::FlushFails => &[Fault::FlushFails],
            Theme::SwitchOver => &[Fault::SwitchOver],
            Theme::HotLogFails => &[Fault::HotLogFails, Fault::CutLink, Fault::SourceLetsGo],
            Theme::HotLogAtCommit => &[Fault::TrackingLost],
            Theme::CommitLost => &[Fault::CommitLost, Fault::SourceLetsGo],
            Theme::LateFrames => &[Fault::SourceLetsGo, Fault::KillPrimary],
            Theme::FirstSync | Theme::StandbyPower => &[Fault::PowerStandby],
            Theme::Promote => &[Fault::Promote],
            Theme::RollBack => &[Fault::RollBack],
            Theme::PromoteAt => &[Fault::Promote],
            Theme::Damage => &[Fault::DamageLive],
            Theme::DamageUnheard => &[Fault::DamageLive, Fault::OpenedLost],
            Theme::DamagePower => &[Fault::DamageLive, Fault::PowerPrimary],
            Theme::OldCopy => &[Fault::OldCopySoon],
            Theme::OldCopyAtNote => &[Fault::OldCopyAtNote],
            Theme::OldSessions => &[Fault::OldSessions],
            Theme::LostRecord => &[Fault::LoseRecord],
            Theme::Verify => &[Fault::Verify, Fault::FlipBase],
            Theme::Grow => &[Fault::Grow],
        }
    }

    fn bend(self, shape: &mut Shape) {
        match self {
            Theme::StandbyPower => shape.slow_sync = true,
            Theme::PrimaryTwice => {
                shape.unflushed = true;
                shape.hot_capacity = 8;
            }
            Theme::PrimaryAlone => shape.unflushed = true,
            Theme::PrimaryPower => {
                shape.unflushed = true;
                shape.hot_capacity = 2;
            }
            Theme::Verify => shape.history_us = 0,
            Theme::Promote => shape.older_points = false,
            Theme::PromoteAt => {
                shape.history_us = LONG_US;
                shape.older_points = true;
            }
            Theme::Grow => {
                shape.small = true;
                shape.slow_growth = true;
            }
            Theme::SlowWrites => shape.slow_writes = true,
            Theme::OldCopyAtNote => shape.slow_state = true,
            Theme::FirstSync => {
                shape.first_sync = false;
                shape.narrow = true;
            }
            Theme::TwoExtents => {
                shape.two_extents = true;
                shape.bursts = true;
                shape.unflushed = true;
                // So few that the second does not come along with the first.
                shape.hot_capacity = 7;
            }
            Theme::HotLogAtCommit => {
                shape.hot_capacity = 2;
                shape.slow_flush = true;
            }
            Theme::Damage | Theme::DamageUnheard => shape.history_us = shape.history_us.max(100_000),
            _ => {}
        }
    }
}

/// The world of a run, beside its faults.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The primary's volumes are slower than the link.
    pub slow_writes: bool,
    /// Flushes of them are slow.
    pub slow_flush: bool,
    /// Its superblock is.
    pub slow_state: bool,
    /// No faults before the end of the first sync.
    pub first_sync: bool,
    /// A catch-up has one frame under way.
    pub narrow: bool,
    /// The standby's syncs are slow.
    pub slow_sync: bool,
    /// Most writes go over two extents.
    pub two_extents: bool,
    /// Extents that may be hot at once.
    pub hot_capacity: usize,
    /// Clients write in bursts.
    pub bursts: bool,
    /// Clients seldom flush.
    pub unflushed: bool,
    /// How long the standby's base stays behind.
    pub history_us: u64,
    /// Promotions are wanted at older points.
    pub older_points: bool,
    /// The volumes are small at first, and may grow.
    pub small: bool,
    /// Bitmaps that have grown take long to be made.
    pub slow_growth: bool,
}

impl Shape {
    /// What chance and the theme make.
    pub fn new(rng: &mut Rng, theme: Option<Theme>) -> Self {
        let mut shape = Self {
            slow_writes: rng.chance(0.3),
            slow_flush: rng.chance(0.1),
            slow_state: rng.chance(0.1),
            first_sync: rng.chance(0.75),
            narrow: rng.chance(0.1),
            slow_sync: rng.chance(0.1),
            two_extents: rng.chance(0.1),
            hot_capacity: *rng.pick(&[2, 3, 8, 16]),
            bursts: rng.chance(0.1),
            unflushed: rng.chance(0.3),
            history_us: *rng.pick(&[0, 0, 100_000, LONG_US]),
            older_points: rng.chance(0.4),
            small: rng.chance(0.1),
            slow_growth: false,
        };
        if let Some(theme) = theme {
            theme.bend(&mut shape);
        }
        shape
    }
}
