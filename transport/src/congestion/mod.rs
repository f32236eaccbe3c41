//! How much may be under way on a path: congestion control for long lines that lose packets.
//!
//! [`SteadyConfig`] makes the controllers that quinn asks. What one decides is in `model`, which knows no quinn and no
//! clock; `sampler` measures how fast the path delivers.

mod filter;
mod model;
mod sampler;
#[cfg(test)]
mod simulation;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

use model::Model;

/// Makes a controller for each path of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SteadyConfig;

impl ControllerFactory for SteadyConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Steady { model: Model::new(now, current_mtu.into()), smoothed_rtt: Duration::ZERO })
    }
}

/// The model of one path as quinn drives it.
#[derive(Debug, Clone)]
struct Steady {
    model: Model,
    smoothed_rtt: Duration,
}

impl Controller for Steady {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last_packet_number: u64) {
        self.model.on_sent(now, bytes);
    }

    fn on_ack(&mut self, _now: Instant, sent: Instant, bytes: u64, _app_limited: bool, rtt: &RttEstimator) {
        self.smoothed_rtt = rtt.get();
        self.model.on_ack(sent, bytes);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        _largest_packet_num_acked: Option<u64>,
    ) {
        self.model.on_acks_end(now, in_flight, app_limited, self.smoothed_rtt);
    }

    fn on_congestion_event(
        &mut self,
        _now: Instant,
        _sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.model.on_loss(lost_bytes, is_persistent_congestion);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.model.set_packet_bytes(new_mtu.into());
    }

    fn window(&self) -> u64 {
        self.model.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.model.window();
        metrics.pacing_rate = self.model.rate().map(|rate| rate.saturating_mul(8));
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.model.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
