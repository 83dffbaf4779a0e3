//! May a request be tried again, and where.

use atoll_model::Reason;
use std::fmt;

/// Most tries of one request, over gateway and edge together.
pub const TRIES_MAX: u8 = 3;

/// What a method promises (RFC 9110, section 9.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MethodClass {
    /// Asks for nothing to change: may reach one instance twice.
    Safe,
    /// Twice is as good as once: may reach two instances.
    Idempotent,
    /// Anything else.
    Other,
}

impl MethodClass {
    /// The class of a method. Methods are case-sensitive; one that is not known promises nothing.
    #[must_use]
    pub fn of(method: &str) -> Self {
        match method {
            "GET" | "HEAD" | "OPTIONS" | "TRACE" => Self::Safe,
            "PUT" | "DELETE" => Self::Idempotent,
            _ => Self::Other,
        }
    }
}

/// How far a try has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The request certainly reached no instance.
    No,
    /// It may have.
    Maybe,
}

/// A try that failed before its response head.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    /// Why.
    pub reason: Reason,
    /// How far it came.
    pub sent: Sent,
    /// The request's method.
    pub method: MethodClass,
    /// Whether the body can be sent again from its first byte.
    pub replayable: bool,
    /// Tries left, this one not counted.
    pub tries_left: u8,
}

/// What to do after a failed try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Again, at any instance that was not tried. `same_too`: with no other left, the same one may be
    /// asked again.
    Again {
        /// Whether an instance that was tried may be asked again.
        same_too: bool,
    },
    /// Not again.
    Stop(Stop),
}

/// Why a request is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// No other instance would do better.
    Final,
    /// It may have reached an instance, and its method does not allow it to do so twice.
    MayHaveRun,
    /// Some of its body is gone.
    BodyLost,
    /// No try is left.
    NoTriesLeft,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Final => "another try would end the same way",
            Self::MayHaveRun => "the request may have reached an instance, and its method is not idempotent",
            Self::BodyLost => "the request's body can't be sent again",
            Self::NoTriesLeft => "no try is left",
        })
    }
}

/// Decides after a failed try.
#[must_use]
pub const fn decide(failure: &Failure) -> Retry {
    if !failure.reason.is_retryable() {
        return Retry::Stop(Stop::Final);
    }
    if matches!((failure.sent, failure.method), (Sent::Maybe, MethodClass::Other)) {
        return Retry::Stop(Stop::MayHaveRun);
    }
    if !failure.replayable {
        return Retry::Stop(Stop::BodyLost);
    }
    if failure.tries_left == 0 {
        return Retry::Stop(Stop::NoTriesLeft);
    }
    let same_too = matches!(failure.sent, Sent::No) || matches!(failure.method, MethodClass::Safe);
    Retry::Again { same_too }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn failure(reason: Reason, sent: Sent, method: &str) -> Failure {
        Failure { reason, sent, method: MethodClass::of(method), replayable: true, tries_left: 1 }
    }

    #[test]
    fn the_table() {
        use Reason::{
            GatewayFull, InstanceReset, InstanceTimeout, NoInstance, NotPublic, SidecarReset, TunnelLost,
        };
        let again = |same_too| Retry::Again { same_too };
        for (reason, sent, method, expected) in [
            (SidecarReset, Sent::Maybe, "GET", again(true)),
            (SidecarReset, Sent::Maybe, "PUT", again(false)),
            (SidecarReset, Sent::Maybe, "POST", Retry::Stop(Stop::MayHaveRun)),
            (SidecarReset, Sent::Maybe, "get", Retry::Stop(Stop::MayHaveRun)),
            (InstanceReset, Sent::Maybe, "PATCH", Retry::Stop(Stop::MayHaveRun)),
            (TunnelLost, Sent::No, "POST", again(true)),
            (GatewayFull, Sent::No, "POST", again(true)),
            (NoInstance, Sent::No, "POST", again(true)),
            (NotPublic, Sent::No, "GET", Retry::Stop(Stop::Final)),
            (InstanceTimeout, Sent::Maybe, "GET", Retry::Stop(Stop::Final)),
        ] {
            assert_eq!(decide(&failure(reason, sent, method)), expected, "{reason} {sent:?} {method}");
        }
        let lost = Failure { replayable: false, ..failure(TunnelLost, Sent::No, "GET") };
        assert_eq!(decide(&lost), Retry::Stop(Stop::BodyLost));
        let spent = Failure { tries_left: 0, ..failure(TunnelLost, Sent::No, "GET") };
        assert_eq!(decide(&spent), Retry::Stop(Stop::NoTriesLeft));
    }

    proptest! {
        #[test]
        fn nothing_runs_twice_that_must_not(
            reason in 0..Reason::ALL.len(), sent in any::<bool>(), method in 0_usize..4,
            replayable in any::<bool>(), tries_left in 0_u8..3,
        ) {
            let failure = Failure {
                reason: Reason::ALL[reason],
                sent: if sent { Sent::Maybe } else { Sent::No },
                method: MethodClass::of(["GET", "PUT", "POST", "WEIRD"][method]),
                replayable,
                tries_left,
            };
            if let Retry::Again { same_too } = decide(&failure) {
                prop_assert!(replayable && tries_left > 0);
                prop_assert!(failure.sent == Sent::No || failure.method != MethodClass::Other);
                prop_assert!(!same_too || failure.sent == Sent::No || failure.method == MethodClass::Safe);
            }
        }
    }
}
