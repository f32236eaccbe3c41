//! The metadata contexts: their names, their ids, and which of them a client has chosen.

use crate::export::Context;

/// All contexts, in the order in which they are listed and answered.
pub(crate) const ALL: [Context; 2] = [Context::Allocation, Context::Dirty];

impl Context {
    /// The name in queries and listings.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Allocation => "base:allocation",
            Self::Dirty => "afterimage:dirty",
        }
    }

    /// The id in replies; ours to choose, the same for every connection.
    pub(crate) fn id(self) -> u32 {
        match self {
            Self::Allocation => 1,
            Self::Dirty => 2,
        }
    }

    /// Whether a listing asks for it: by its name, or by its namespace and a colon.
    pub(crate) fn is_listed_by(self, query: &str) -> bool {
        query == self.name() || query.strip_suffix(':').is_some_and(|space| self.namespace() == Some(space))
    }

    fn namespace(self) -> Option<&'static str> {
        self.name().split_once(':').map(|(space, _)| space)
    }
}

/// The contexts that a connection has chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContextSet {
    allocation: bool,
    dirty: bool,
}

impl ContextSet {
    pub(crate) fn insert(&mut self, context: Context) {
        match context {
            Context::Allocation => self.allocation = true,
            Context::Dirty => self.dirty = true,
        }
    }

    pub(crate) fn contains(self, context: Context) -> bool {
        match context {
            Context::Allocation => self.allocation,
            Context::Dirty => self.dirty,
        }
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Context> {
        ALL.into_iter().filter(move |context| self.contains(*context))
    }

    pub(crate) fn len(self) -> usize {
        self.iter().count()
    }
}
