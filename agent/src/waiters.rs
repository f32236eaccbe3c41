//! Clients' requests that wait for the source's answer.

use afterimage_protocol::source::{LocalError, RequestId};
use tokio::sync::oneshot;

/// How a request ended.
pub(crate) type Answer = Result<(), LocalError>;

/// A place for each request under way; places are used again, so their number is that of the busiest moment.
#[derive(Default)]
pub(crate) struct Waiters {
    places: Vec<Option<oneshot::Sender<Answer>>>,
    free: Vec<usize>,
}

impl Waiters {
    pub fn add(&mut self) -> (RequestId, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        let place = match self.free.pop() {
            Some(place) => {
                self.places[place] = Some(sender);
                place
            }
            None => {
                self.places.push(Some(sender));
                self.places.len() - 1
            }
        };
        (RequestId(place as u64), receiver)
    }

    /// Takes the waiter of a request that has ended; `None` if it was abandoned.
    pub fn take(&mut self, request: RequestId) -> Option<oneshot::Sender<Answer>> {
        let place = usize::try_from(request.0).ok().filter(|place| *place < self.places.len())?;
        self.free.push(place);
        self.places[place].take()
    }

    /// Every request that waits now is told that it failed. Their places stay taken until the source ends them.
    pub fn abandon(&mut self) {
        self.places.iter_mut().for_each(|place| *place = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abandoned_place_is_not_given_to_another_before_it_ends() {
        let mut waiters = Waiters::default();
        let (first, mut answer) = waiters.add();
        waiters.abandon();
        assert!(answer.try_recv().is_err());
        let (second, _answer) = waiters.add();
        assert_ne!(first, second);
        assert!(waiters.take(first).is_none());
        let (third, _answer) = waiters.add();
        assert_eq!(third, first);
    }
}
