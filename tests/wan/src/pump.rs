//! The thread that moves packets between the two devices, through one [`Line`] each way. It owns the lines;
//! whoever wants to look at or change them sends it something to do.

use std::{
    io,
    num::NonZeroU64,
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};

use crate::{line::Line, wan::WanError};

/// The devices have the usual MTU of 1500; what is longer would be a surprise and is cut off by the kernel.
const PACKET_BUFFER: usize = 2048;
/// Packets read from one device before the other one and the clock get their turn.
const READ_BATCH: usize = 64;
/// The kernel may wake a sleeper this late by default: 50 µs, twice in every round trip.
const TIMER_SLACK_NANOS: NonZeroU64 = NonZeroU64::new(1).unwrap();

/// The two ways of the link.
pub(crate) struct Lines {
    pub(crate) ab: Line,
    pub(crate) ba: Line,
}

type Work = Box<dyn FnOnce(&mut Lines) + Send>;

enum Request {
    Run(Work),
    Stop,
}

/// A running pump. Dropping it stops the thread and closes the devices.
#[derive(Debug)]
pub(crate) struct Pump {
    requests: Sender<Request>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    /// Starts moving packets between the devices of side a and side b.
    pub(crate) fn start(tun_a: OwnedFd, tun_b: OwnedFd, lines: Lines) -> Result<Self, WanError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| WanError::io("make an eventfd")(error.into()))?;
        let wake = Arc::new(wake);
        let (requests, inbox) = mpsc::channel();
        let mut worker =
            Worker { tun_a, tun_b, lines, inbox, wake: Arc::clone(&wake), origin: Instant::now() };
        let thread = thread::Builder::new()
            .name("wan-pump".to_owned())
            .spawn(move || worker.run())
            .map_err(WanError::io("start the pump"))?;
        Ok(Self { requests, wake, thread: Some(thread) })
    }

    /// Runs `work` between two packets. When this returns, every packet that comes out obeys the change.
    pub(crate) fn with_lines<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Lines) -> T + Send + 'static,
    ) -> Result<T, WanError> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.send(Request::Run(Box::new(move |lines| {
            // The asker waits below for as long as this thread runs, so somebody receives it.
            let _ = answer.send(work(lines));
        })))?;
        answered.recv().map_err(|_| WanError::Stopped)
    }

    fn send(&self, request: Request) -> Result<(), WanError> {
        self.requests.send(request).map_err(|_| WanError::Stopped)?;
        match rustix::io::write(&*self.wake, &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(WanError::io("wake the pump")(error.into())),
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        let _ = self.send(Request::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of the pump has been printed where it happened, and there is nothing left to save.
            let _ = thread.join();
        }
    }
}

struct Worker {
    tun_a: OwnedFd,
    tun_b: OwnedFd,
    lines: Lines,
    inbox: Receiver<Request>,
    wake: Arc<OwnedFd>,
    origin: Instant,
}

impl Worker {
    fn run(&mut self) {
        // Only precision is lost where this is not possible.
        let _ = rustix::thread::set_current_timer_slack(Some(TIMER_SLACK_NANOS));
        loop {
            if self.serve_requests().is_stop() {
                return;
            }
            self.deliver();
            if let Err(error) = self.wait().and_then(|()| self.collect()) {
                eprintln!("wan: the link is down, reading its devices failed: {error}");
                return;
            }
        }
    }

    fn serve_requests(&mut self) -> Next {
        while let Ok(request) = self.inbox.try_recv() {
            match request {
                Request::Run(work) => work(&mut self.lines),
                Request::Stop => return Next::Stop,
            }
        }
        Next::GoOn
    }

    fn deliver(&mut self) {
        let now = self.origin.elapsed();
        let ways = [(&mut self.lines.ab, &self.tun_b), (&mut self.lines.ba, &self.tun_a)];
        for (line, tun) in ways {
            while let Some(packet) = line.pop(now) {
                // A device that somebody took down refuses packets; they are gone, as on a real host.
                let _ = rustix::io::write(tun, &packet);
            }
        }
    }

    /// Until a packet is due, a packet comes in or somebody asks.
    fn wait(&mut self) -> io::Result<()> {
        let due = [self.lines.ab.next_due(), self.lines.ba.next_due()].into_iter().flatten().min();
        let timeout = due.map(|due| timespec(due.saturating_sub(self.origin.elapsed())));
        let mut sources = [
            PollFd::new(&self.tun_a, PollFlags::IN),
            PollFd::new(&self.tun_b, PollFlags::IN),
            PollFd::new(&*self.wake, PollFlags::IN),
        ];
        match poll(&mut sources, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !sources[2].revents().is_empty() {
            // Only resets the count; the requests themselves are in the channel.
            let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        }
        Ok(())
    }

    fn collect(&mut self) -> io::Result<()> {
        let ways = [(&mut self.lines.ab, &self.tun_a), (&mut self.lines.ba, &self.tun_b)];
        let mut buffer = [0; PACKET_BUFFER];
        for (line, tun) in ways {
            for _ in 0..READ_BATCH {
                match rustix::io::read(tun, &mut buffer) {
                    Ok(length) => line.push(self.origin.elapsed(), buffer[..length].to_vec()),
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

enum Next {
    GoOn,
    Stop,
}

impl Next {
    fn is_stop(&self) -> bool {
        matches!(self, Next::Stop)
    }
}

fn timespec(duration: Duration) -> Timespec {
    // A line holds nothing for longer than its largest delay and wait, so this always fits.
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
}
