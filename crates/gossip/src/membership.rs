//! Who is alive in one scope: foca (SWIM) behind an interface without I/O and without a clock.
//!
//! What foca can't do is done here: a packet counts only when the peer that the connection's certificate
//! names is the one that it says it is from.

use crate::scope::Scope;
use atoll_model::{NodeName, RegionName, Roles, SiteName};
use bytes::Bytes;
use foca::{
    AccumulatingRuntime, Codec, Foca, Header, NoCustomBroadcast, OwnedNotification, PostcardCodec, Timer,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

/// Largest membership packet: fits a QUIC datagram before path MTU discovery, with the scope's name.
pub const PACKET_BYTES_MAX: usize = 1100;

/// A node as a member of a scope.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// The node.
    pub name: NodeName,
    /// Where its gossip transport listens (UDP).
    pub address: SocketAddr,
    /// Higher after each start of the node.
    pub generation: u64,
    /// Its site.
    pub site: SiteName,
    /// Its region.
    pub region: RegionName,
    /// Its roles.
    pub roles: Roles,
}

impl foca::Identity for Member {
    type Addr = NodeName;

    fn renew(&self) -> Option<Self> {
        Some(Self { generation: self.generation + 1, ..self.clone() })
    }

    fn addr(&self) -> NodeName {
        self.name.clone()
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.generation > adversary.generation
    }
}

/// What the certificate says of whoever a packet came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The node.
    pub name: NodeName,
    /// Its site.
    pub site: SiteName,
    /// Its region.
    pub region: RegionName,
    /// Its roles.
    pub roles: Roles,
}

impl Peer {
    /// Whether the member is this peer.
    #[must_use]
    pub fn is(&self, member: &Member) -> bool {
        member.name == self.name
            && member.site == self.site
            && member.region == self.region
            && member.roles == self.roles
    }
}

/// Why a packet was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Not a packet.
    #[error("it can't be read")]
    Malformed,
    /// It says that it is from another node.
    #[error("it says to be from {0}")]
    NotThePeer(NodeName),
    /// The peer has no business in the scope.
    #[error("{0} does not belong to the scope")]
    NotInScope(NodeName),
}

/// How fast a lost member is noticed.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Between probes of one member each.
    pub probe_period: Duration,
    /// How long an answer may take before others are asked to probe.
    pub probe_rtt: Duration,
    /// From suspicion to loss.
    pub suspect_to_down_after: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_millis(1000),
            probe_rtt: Duration::from_millis(300),
            suspect_to_down_after: Duration::from_millis(2500),
        }
    }
}

fn foca_config(pace: &Pace) -> foca::Config {
    let some = |frequency, members| {
        NonZeroUsize::new(members).map(|num_members| foca::PeriodicParams { frequency, num_members })
    };
    foca::Config {
        probe_period: pace.probe_period,
        probe_rtt: pace.probe_rtt,
        suspect_to_down_after: pace.suspect_to_down_after,
        num_indirect_probes: NonZeroUsize::MIN.saturating_add(2),
        max_transmissions: NonZeroU8::MIN.saturating_add(9),
        // A name that is down keeps its place for a day; it returns under a higher generation.
        remove_down_after: Some(Duration::from_secs(24 * 3600)),
        max_packet_size: NonZeroUsize::MIN.saturating_add(PACKET_BYTES_MAX - 1),
        notify_down_members: true,
        periodic_announce: some(Duration::from_secs(30), 1),
        periodic_announce_to_down_members: some(Duration::from_secs(15), 2),
        periodic_gossip: some(Duration::from_millis(300), 3),
    }
}

/// What became of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is alive.
    Up(Member),
    /// It is lost, or left.
    Down(Member),
}

/// The membership of one scope. Time is a [`Duration`] since a start of the caller's choice.
pub struct Membership {
    scope: Scope,
    foca: Foca<Member, PostcardCodec, StdRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Member>,
    timers: BTreeMap<(Duration, u64), Timer<Member>>,
    timers_made: u64,
    packets: Vec<(Member, Bytes)>,
    changes: Vec<Change>,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl Membership {
    /// A scope in which nobody else is known.
    #[must_use]
    pub fn new(scope: Scope, own: Member, pace: &Pace, seed: u64) -> Self {
        Self {
            scope,
            foca: Foca::new(own, foca_config(pace), StdRng::seed_from_u64(seed), PostcardCodec),
            runtime: AccumulatingRuntime::new(),
            timers: BTreeMap::new(),
            timers_made: 0,
            packets: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// This node, as the others know it. Its generation rises when it was taken for lost.
    #[must_use]
    pub fn own(&self) -> &Member {
        self.foca.identity()
    }

    /// Everybody else who is alive.
    pub fn alive(&self) -> impl Iterator<Item = &Member> {
        self.foca.iter_members().map(foca::Member::id)
    }

    /// A peer whom a connection has proven: it is alive, and is asked for the others.
    pub fn introduce(&mut self, now: Duration, member: Member) {
        if member.name == self.own().name || !self.scope.admits(member.roles, Some(&member.region)) {
            return;
        }
        let known = self.alive().any(|other| *other == member);
        if known {
            return;
        }
        let update = std::iter::once(foca::Member::alive(member.clone()));
        let _ignored_error = self.foca.apply_many(update, true, &mut self.runtime);
        let _ignored_error = self.foca.announce(member, &mut self.runtime);
        self.settle(now);
    }

    /// A packet that `peer` sent.
    pub fn handle_packet(&mut self, now: Duration, peer: &Peer, packet: &[u8]) -> Result<(), PacketError> {
        let mut codec = PostcardCodec;
        let header: Header<Member> = codec.decode_header(packet).map_err(|_| PacketError::Malformed)?;
        if !peer.is(&header.src) {
            return Err(PacketError::NotThePeer(header.src.name));
        }
        if !self.scope.admits(peer.roles, Some(&peer.region)) {
            return Err(PacketError::NotInScope(peer.name.clone()));
        }
        let taken = self.foca.handle_data(packet, &mut self.runtime);
        self.settle(now);
        match taken {
            // What is about an older or newer self, or comes late, is no fault of the peer.
            Err(foca::Error::Decode(_) | foca::Error::MalformedPacket | foca::Error::DataTooBig) => {
                Err(PacketError::Malformed)
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Duration) {
        let mut due = Vec::new();
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= now) {
            due.push(entry.remove());
        }
        // Foca wants an indirect probe's timer before the next probe's, should both be late.
        due.sort();
        for timer in due {
            let _ignored_error = self.foca.handle_timer(timer, &mut self.runtime);
        }
        self.settle(now);
    }

    /// Tells the others that this node goes.
    pub fn leave(&mut self, now: Duration) {
        let _ignored_error = self.foca.leave_cluster(&mut self.runtime);
        self.settle(now);
    }

    /// Packets to send. To be called after everything else that takes `&mut self`.
    pub fn poll_packets(&mut self) -> Vec<(Member, Bytes)> {
        std::mem::take(&mut self.packets)
    }

    /// What changed since the last call.
    pub fn poll_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    fn settle(&mut self, now: Duration) {
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timers_made += 1;
            self.timers.insert((now + after, self.timers_made), timer);
        }
        while let Some(packet) = self.runtime.to_send() {
            self.packets.push(packet);
        }
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(member) => self.changes.push(Change::Up(member)),
                OwnedNotification::MemberDown(member) => self.changes.push(Change::Down(member)),
                OwnedNotification::Rename(before, after) => {
                    if self.alive().any(|member| *member == after) {
                        self.changes.push(Change::Down(before));
                        self.changes.push(Change::Up(after));
                    }
                }
                OwnedNotification::Active
                | OwnedNotification::Idle
                | OwnedNotification::Defunct
                | OwnedNotification::Rejoin(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
