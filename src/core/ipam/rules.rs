//! The rules that safety rests on. In test builds each can be taken away, so that tests prove that its loss is noticed.

/// Which rules hold. Always all, but in tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rules {
    #[cfg(any(test, feature = "sim"))]
    /// See the methods of the same names.
    pub without: Without,
}

/// Rules taken away.
#[cfg(any(test, feature = "sim"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs, reason = "said by the methods of Rules")]
pub struct Without {
    pub keep_first: bool,
    pub all_promise: bool,
    pub freeze: bool,
    pub majority: bool,
    pub contained_views: bool,
    pub one_sponsor: bool,
    pub not_fewer: bool,
    pub own_only: bool,
    pub fence: bool,
    pub whole_removals: bool,
}

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        impl Rules {
            $($(#[$doc])*
            #[inline]
            pub(super) const fn $name(&self) -> bool {
                #[cfg(any(test, feature = "sim"))]
                { !self.without.$name }
                #[cfg(not(any(test, feature = "sim")))]
                { true }
            })+
        }
    };
}

rules! {
    /// Nothing is told before it is on disk.
    keep_first,
    /// A removal needs the promise of every live member, not of a majority.
    all_promise,
    /// A peer whose removal was promised is given nothing, and what it gave late waits.
    freeze,
    /// A newcomer needs a majority.
    majority,
    /// A member votes for a newcomer only when the sponsor knows every member that it knows.
    contained_views,
    /// A newcomer has one sponsor until that one is removed.
    one_sponsor,
    /// A removal needs no fewer members than it removes.
    not_fewer,
    /// Only the owner gives an address out or away.
    own_only,
    /// A removed peer gives out nothing.
    fence,
    /// A removal is believed only with all that its teller knows.
    whole_removals,
}

#[allow(clippy::derivable_impls, reason = "the field is there in test builds only")]
impl Default for Rules {
    fn default() -> Rules {
        Rules {
            #[cfg(any(test, feature = "sim"))]
            without: Without::default(),
        }
    }
}
