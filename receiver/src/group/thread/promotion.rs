//! A promotion as the group's thread does it: asked for, under way in the state machine, done.

use afterimage_events::{Event, event};
use afterimage_protocol::target::{CannotPromote, Choice, Promotion};

use super::{Place, Thread};
use crate::group::open::Elsewhere;
use crate::group::promote::{PromoteError, PromoteRequest, Promoted, fresh_generation};
use crate::group::snapshot::Phase;
use crate::{clock, hooks};

impl Thread {
    /// Answers a dry run, or begins the promotion.
    pub(super) fn promote(&mut self, request: PromoteRequest) {
        self.open_again();
        let error = match &mut self.place {
            Place::Standby(standby) if request.dry_run => {
                let loss = standby.target.loss(clock::now());
                let (source_seen, connected) = (self.source_seen, self.link.is_some());
                let Some(wanted) = request.at else {
                    let outcome = standby.target.may_promote().map(|point| Promoted {
                        position: point.position,
                        time: standby.newest_time(),
                        loss,
                        source_seen,
                        connected,
                        discarded: None,
                    });
                    // Whoever asked may have gone.
                    let _ = request.answer.send(outcome.map_err(PromoteError::from));
                    return;
                };
                match standby.target.search(wanted) {
                    Ok(search) => {
                        standby.look(
                            search,
                            Box::new(move |found| {
                                let found = found.map_err(PromoteError::Failed).and_then(|choice| {
                                    let Choice { point, time, discarded } =
                                        choice.map_err(CannotPromote::from)?;
                                    let discarded = Some(discarded);
                                    Ok(Promoted {
                                        position: point.position,
                                        time,
                                        loss,
                                        source_seen,
                                        connected,
                                        discarded,
                                    })
                                });
                                // Whoever asked may have gone.
                                let _ = request.answer.send(found);
                            }),
                        );
                        return;
                    }
                    Err(refusal) => PromoteError::from(refusal),
                }
            }
            Place::Standby(standby) => match standby.target.may_promote() {
                Ok(_) => {
                    match request.at {
                        Some(wanted) => {
                            standby.target.promote_at(clock::now(), request.generation, wanted);
                        }
                        None => standby.target.promote(clock::now(), request.generation),
                    }
                    self.promotion = Some(request);
                    return;
                }
                Err(refusal) => PromoteError::from(refusal),
            },
            Place::Elsewhere(Elsewhere::Configured) => PromoteError::ConfiguredPrimary,
            Place::Elsewhere(Elsewhere::Primary(standing)) => {
                PromoteError::Primary(standing.lineage.current())
            }
            Place::Failed { .. } => PromoteError::Failed(self.last_error.clone().unwrap_or_default()),
        };
        let _ = request.answer.send(Err(error));
    }

    /// The source admits nothing any more and asks this host to take over.
    pub(super) fn take_over(&mut self) {
        let Place::Standby(standby) = &mut self.place else { return };
        match fresh_generation() {
            Ok(generation) => standby.target.take_over(clock::now(), generation),
            Err(error) => {
                standby.target.do_not_take_over(format!("its system gives no random numbers: {error}"));
            }
        }
        standby.settle(&mut self.link);
    }

    /// The state machine is done with a promotion.
    pub(super) fn promoted(&mut self, outcome: Result<Promotion, CannotPromote>) {
        let generation = outcome.as_ref().ok().map(|promotion| promotion.generation);
        let outcome = match outcome {
            Ok(promotion) => {
                let mut time = promotion.discarded.as_ref().map(|_| promotion.time).filter(|t| t.0 > 0);
                if let Place::Standby(standby) = &mut self.place {
                    standby.finish_jobs();
                    time = time.or(standby.newest_time());
                    let standing = standby.target.standing();
                    // Files, volumes and lock are free for the agent before anyone hears of it.
                    self.place = Place::Elsewhere(Elsewhere::Primary(standing));
                }
                self.phase = Phase::Elsewhere;
                self.end_session("the standby was promoted");
                event!(
                    Event::Promoted,
                    group = self.name(),
                    position = %promotion.position,
                    generation = %promotion.generation,
                    "this host is the primary"
                );
                let Promotion { position, loss, discarded, .. } = promotion;
                Ok(Promoted {
                    position,
                    time,
                    loss,
                    source_seen: self.source_seen,
                    connected: false,
                    discarded,
                })
            }
            Err(error) => {
                event!(Event::NotPromoted, group = self.name(), %error, "not promoted");
                Err(error.into())
            }
        };
        match self.promotion.take() {
            // Whoever asked may have gone.
            Some(request) => drop(request.answer.send(outcome)),
            // The source had asked, and hears of it when it comes again.
            None => {
                if let (Ok(promoted), Some(generation)) = (outcome, generation) {
                    hooks::after_switchover(&self.setup, generation, &promoted);
                }
            }
        }
    }
}
