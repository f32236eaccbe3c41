//! The rules that keep the guarantees, by name, each with a switch in test builds.
//!
//! In an ordinary build every rule is in force and [`Rules::on`] is a constant. With the feature `rule-switches` (test
//! builds only) the simulator can break one rule at a time to show that it would notice.

/// One condition without which a guarantee falls. The number is that of the rule page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// 1: acknowledgements name checkpoints; nothing inside an open epoch advances them.
    AckIsCheckpoint,
    /// 2: a bit clears only when the block's last write is covered.
    ClearLastWrite,
    /// 2: a bit does not clear while a local write to its block is in flight.
    ClearLocal,
    /// 3: a handshake sets `received` and `durable` to what the target reports, downwards too.
    ReceivedResets,
    /// 3: in sync again only when the acknowledgement covers every write acknowledged to a client.
    InSyncCovers,
    /// 4: a starting target fsyncs the tail it found before it reports a position.
    RecoverFsync,
    /// 4: after a failed fsync the tail is written again, not fsynced again.
    RewriteTail,
    /// 5: a local error takes a sequence and opens an epoch.
    ErrorEpoch,
    /// 6: an extent leaves only after a flush that started after its last write.
    CoolAfterFlush,
    /// 6: and when its bits are clear or its bitmap page is synced.
    CoolSyncsBitmap,
    /// 6: after a failed flush every block counts as dirty.
    FailedFlush,
    /// 7: after a power cut the hot extents are or-ed into the bitmap.
    HotIntoBitmap,
    /// 7: a restart inherits the log.
    HotInherited,
    /// 8: a write over several extents is one transaction.
    HotTogether,
    /// 9: each start takes a fresh, reserved sequence.
    ReserveSequence,
    /// 9: the first checkpoint of a run is an epoch commit.
    EpochFirst,
    /// 9: an epoch resumes only within one source incarnation.
    EpochIncarnation,
    /// 9: what was written while disconnected goes again into a resumed epoch.
    EpochResumeRewrites,
    /// 9: streaming resumes only if the queue holds every sequence after the target's checkpoint.
    ResumeContiguous,
    /// 9: resuming the stream aborts the epoch that the target has open.
    ResumeAborts,
    /// 10: within an epoch the higher of record sequence and read sequence wins.
    LastWriterWins,
    /// 10: the commit waits for all frames.
    CommitWaits,
    /// 11: a record that overflows inside an epoch puts its blocks back.
    OverflowRequeues,
    /// 12: bits of a first sync clear only after an fsync of the base.
    DirectFsync,
    /// 12: first sync goes to the base only while there is no checkpoint.
    DirectOnlyFirst,
    /// 13: frames of an older session are dropped.
    SessionFence,
    /// 13: only the next contiguous sequence is taken.
    Contiguous,
    /// 14: the range lock ends at local completion.
    LockEndsLocally,
    /// 15: admission is held for a bounded time so that an epoch can close.
    Throttle,
    /// 16: only durable records are applied.
    ApplyDurable,
    /// 16: `oldest` is raised durably before a batch touches the base.
    OldestFirst,
    /// 16: the journal is trimmed after an fsync of the base.
    TrimAfterSync,
    /// 17: a promotion fsyncs the journal up to its point before it serves.
    PromoteFsync,
    /// 18: what a promotion at an older point discards is noted before the journal is cut.
    DiscardNoted,
    /// 19: the source joins the target's bits.
    JoinBits,
    /// 19: and at a new sequence, so that the stream does not just resume.
    JoinTakesSequence,
    /// 19: the target keeps its bits until an epoch begun after the union has committed.
    TargetKeepsBits,
    /// 20: a demotion flushes volumes and bitmaps before it is noted.
    DemoteFlushes,
    /// 21: that a generation is real is durable before its first write is admitted.
    RealFirst,
    /// 21: a rollback is durable before the peer hears of it.
    RollbackDurable,
    /// 22: what a damaged journal lost is fetched again.
    DamageRefetched,
    /// 22: damage under an apply batch withdraws every point.
    DamageUnderApply,
    /// 23: "the peer has durably X" is noted before the bits that X covers clear.
    NoteFirst,
    /// 23: a peer found behind the note is compared in full.
    StalePeer,
    /// 23: a peer whose state is not of the last session is compared in full.
    StaleSession,
    /// 24: that the target may have a checkpoint is durable before it gets the first.
    FirstCommitNoted,
    /// 24: while a lease runs nobody is answered without the target.
    LeaseHeld,
    /// 24: a lease counts from when its target was heard before it, and no longer than it was lent for.
    LeaseAge,
    /// 24: and for what the target has.
    LeaseCovers,
    /// 24: and ends with the session.
    LeaseOfSession,
    /// 25: a check travels in the order, and is compared at its sequence only.
    CheckInOrder,
    /// 25: what is compared is the base with the journal up to the check.
    CheckView,
    /// 25: no batch goes beyond a check that was not compared yet.
    CheckHoldsApply,
    /// 26: nothing is admitted while the bitmaps of volumes that grow are made.
    GrowHolds,
    /// 26: the new sizes are durable before anything counts with them.
    GrowNoted,
    /// 26: a growth takes a sequence, and a catch-up carries the new area.
    GrowTakesSequence,
}

impl Rule {
    /// All rules, in order of their numbers.
    pub const ALL: &'static [(Rule, u8, &'static str)] = &[
        (Rule::AckIsCheckpoint, 1, "ack-is-checkpoint"),
        (Rule::ClearLastWrite, 2, "clear-last-write"),
        (Rule::ClearLocal, 2, "clear-local"),
        (Rule::ReceivedResets, 3, "received-resets"),
        (Rule::InSyncCovers, 3, "in-sync-covers"),
        (Rule::RecoverFsync, 4, "recover-fsync"),
        (Rule::RewriteTail, 4, "rewrite-tail"),
        (Rule::ErrorEpoch, 5, "error-epoch"),
        (Rule::CoolAfterFlush, 6, "cool-after-flush"),
        (Rule::CoolSyncsBitmap, 6, "cool-syncs-bitmap"),
        (Rule::FailedFlush, 6, "failed-flush"),
        (Rule::HotIntoBitmap, 7, "hot-into-bitmap"),
        (Rule::HotInherited, 7, "hot-inherited"),
        (Rule::HotTogether, 8, "hot-together"),
        (Rule::ReserveSequence, 9, "reserve-sequence"),
        (Rule::EpochFirst, 9, "epoch-first"),
        (Rule::EpochIncarnation, 9, "epoch-incarnation"),
        (Rule::EpochResumeRewrites, 9, "epoch-resume-rewrites"),
        (Rule::ResumeContiguous, 9, "resume-contiguous"),
        (Rule::ResumeAborts, 9, "resume-aborts"),
        (Rule::LastWriterWins, 10, "last-writer-wins"),
        (Rule::CommitWaits, 10, "commit-waits"),
        (Rule::OverflowRequeues, 11, "overflow-requeues"),
        (Rule::DirectFsync, 12, "direct-fsync"),
        (Rule::DirectOnlyFirst, 12, "direct-only-first"),
        (Rule::SessionFence, 13, "session-fence"),
        (Rule::Contiguous, 13, "contiguous"),
        (Rule::LockEndsLocally, 14, "lock-ends-locally"),
        (Rule::Throttle, 15, "throttle"),
        (Rule::ApplyDurable, 16, "apply-durable"),
        (Rule::OldestFirst, 16, "oldest-first"),
        (Rule::TrimAfterSync, 16, "trim-after-sync"),
        (Rule::PromoteFsync, 17, "promote-fsync"),
        (Rule::DiscardNoted, 18, "discard-noted"),
        (Rule::JoinBits, 19, "join-bits"),
        (Rule::JoinTakesSequence, 19, "join-takes-sequence"),
        (Rule::TargetKeepsBits, 19, "target-keeps-bits"),
        (Rule::DemoteFlushes, 20, "demote-flushes"),
        (Rule::RealFirst, 21, "real-first"),
        (Rule::RollbackDurable, 21, "rollback-durable"),
        (Rule::DamageRefetched, 22, "damage-refetched"),
        (Rule::DamageUnderApply, 22, "damage-under-apply"),
        (Rule::NoteFirst, 23, "note-first"),
        (Rule::StalePeer, 23, "stale-peer"),
        (Rule::StaleSession, 23, "stale-session"),
        (Rule::FirstCommitNoted, 24, "first-commit-noted"),
        (Rule::LeaseHeld, 24, "lease-held"),
        (Rule::LeaseAge, 24, "lease-age"),
        (Rule::LeaseCovers, 24, "lease-covers"),
        (Rule::LeaseOfSession, 24, "lease-of-session"),
        (Rule::CheckInOrder, 25, "check-in-order"),
        (Rule::CheckView, 25, "check-view"),
        (Rule::CheckHoldsApply, 25, "check-holds-apply"),
        (Rule::GrowHolds, 26, "grow-holds"),
        (Rule::GrowNoted, 26, "grow-noted"),
        (Rule::GrowTakesSequence, 26, "grow-takes-sequence"),
    ];

    /// The rule called `name`.
    pub fn by_name(name: &str) -> Option<Rule> {
        Self::ALL.iter().find(|(_, _, n)| *n == name).map(|(r, _, _)| *r)
    }
}

/// Which rules are in force: all of them, but for what a test build switched off.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    #[cfg(feature = "rule-switches")]
    off: u64,
}

impl Rules {
    /// All rules in force.
    pub const ALL: Self = Self {
        #[cfg(feature = "rule-switches")]
        off: 0,
    };

    /// Whether `rule` is in force.
    #[cfg(not(feature = "rule-switches"))]
    #[inline(always)]
    pub const fn on(self, _rule: Rule) -> bool {
        true
    }

    /// Whether `rule` is in force.
    #[cfg(feature = "rule-switches")]
    pub fn on(self, rule: Rule) -> bool {
        self.off & (1 << rule as u8) == 0
    }

    /// All rules but `rule`.
    #[cfg(feature = "rule-switches")]
    pub fn without(rule: Rule) -> Self {
        Self::default().and_without(rule)
    }

    /// These, and `rule` is off too.
    #[cfg(feature = "rule-switches")]
    pub fn and_without(self, rule: Rule) -> Self {
        Self { off: self.off | 1 << rule as u8 }
    }
}
