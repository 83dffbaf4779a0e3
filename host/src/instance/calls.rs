//! What the program calls: listeners of its sidecar, and what the sidecar is to know of the called services.

use super::Instance;
use crate::state::SavedCall;
use crate::supervisor::Event;
use atoll_model::ClusterName;
use atoll_wire::sidecar::{Call, SidecarStatus};
use std::collections::BTreeSet;
use std::io;
use tracing::{info, warn};

/// Services that a sidecar may ask for by name through its forward proxy.
const WANTS_MAX: usize = 64;
/// Who holds the forward proxy's port; no variable is called so.
const PROXY: &str = "proxy";

impl Instance {
    /// Whether the program makes calls through its sidecar.
    pub(super) fn makes_calls(&self) -> bool {
        !self.saved.calls.is_empty() || self.saved.spec.proxy_env
    }

    /// The variables by which the program finds its sidecar's listeners.
    pub(super) fn call_variables(&self) -> Vec<(String, String)> {
        let url = |call: &SavedCall| {
            (call.variable.clone(), format!("{}://127.0.0.1:{}", call.protocol.scheme(), call.port))
        };
        let mut variables: Vec<_> = self.saved.calls.iter().map(url).collect();
        if self.saved.spec.proxy_env {
            let proxy = format!("http://127.0.0.1:{}", self.saved.proxy_port);
            // Some programs read the one, some the other.
            variables.extend(["http_proxy", "HTTP_PROXY"].map(|name| (name.to_owned(), proxy.clone())));
            let direct = "localhost,127.0.0.1,::1";
            variables.extend(["no_proxy", "NO_PROXY"].map(|name| (name.to_owned(), direct.to_owned())));
        }
        variables
    }

    /// Keeps the ports of an earlier run, and picks those that are missing.
    pub(super) fn hold_ports(&mut self) -> io::Result<()> {
        let (ports, instance) = (&self.ground.ports, self.saved.instance.clone());
        for call in &mut self.saved.calls {
            let holder = format!("{instance}#{}", call.variable);
            match call.port {
                0 => call.port = ports.take(&holder)?,
                port => ports.hold(&holder, port),
            }
        }
        if self.saved.spec.proxy_env {
            let holder = format!("{instance}#{PROXY}");
            match self.saved.proxy_port {
                0 => self.saved.proxy_port = ports.take(&holder)?,
                port => ports.hold(&holder, port),
            }
        }
        Ok(())
    }

    /// What the sidecar says. The host follows the services that it asks for, and gives it other ports for
    /// those that somebody else has, unless the program knows them already.
    pub(super) fn hear_sidecar(&mut self) -> Event {
        let said = self.sidecar_said.borrow_and_update().clone();
        if !self.has_told(&said.wants) {
            self.take_neighbours();
        }
        let open: BTreeSet<u32> = said.ports_open.iter().copied().collect();
        let mut listens = self.listener_ports().all(|port| open.contains(&u32::from(port)));
        if !said.ports_taken.is_empty() {
            listens &= !self.replace_ports(&said);
        }
        Event::SidecarStatus { address: said.address, drained: said.drained, listens }
    }

    /// Whether the sidecar knows of the services that it asks for by name, and of no others.
    fn has_told(&self, wants: &[String]) -> bool {
        let state = self.sidecar_state.borrow();
        state.calls.iter().filter(|call| call.port == 0).map(|call| &call.cluster).eq(wants)
    }

    fn listener_ports(&self) -> impl Iterator<Item = u16> {
        let proxy = Some(self.saved.proxy_port).filter(|port| *port != 0);
        self.saved.calls.iter().map(|call| call.port).chain(proxy)
    }

    /// Whether there are new ones.
    fn replace_ports(&mut self, said: &SidecarStatus) -> bool {
        let instance = self.saved.instance.clone();
        let is_taken = |port: u16| said.ports_taken.contains(&u32::from(port));
        if !self.listener_ports().any(is_taken) {
            return false;
        }
        if self.program.is_some() {
            warn!(%instance, ports = ?said.ports_taken, "the sidecar can't listen for the program's calls: another program has the port");
            return false;
        }
        info!(%instance, ports = ?said.ports_taken, "somebody else has the ports of listeners; others are picked");
        let ports = &self.ground.ports;
        for call in self.saved.calls.iter_mut().filter(|call| is_taken(call.port)) {
            // Without a free port the sidecar goes on to try this one.
            call.port = ports.take(&format!("{instance}#{}", call.variable)).unwrap_or(call.port);
        }
        if is_taken(self.saved.proxy_port) {
            self.saved.proxy_port =
                ports.take(&format!("{instance}#{PROXY}")).unwrap_or(self.saved.proxy_port);
        }
        self.take_neighbours();
        true
    }

    /// Tells the sidecar what it is to know of its region, if that has changed.
    pub(super) fn take_neighbours(&mut self) {
        let wants = self.wanted_by_name();
        let own = self.saved.cluster.clone();
        let called = self.saved.calls.iter().map(|call| &call.cluster);
        self.neighbours.want(called.chain(&wants).chain([&own]));
        let policy = self.neighbours.policy(&own);
        let named =
            self.saved.calls.iter().map(|call| self.call(&call.cluster, call.protocol.as_str(), call.port));
        let calls: Vec<Call> = named.chain(wants.iter().map(|cluster| self.call(cluster, "", 0))).collect();
        let gateways = if self.makes_calls() { self.neighbours.gateways() } else { Vec::new() };
        let proxy_port = u32::from(self.saved.proxy_port);
        self.sidecar_state.send_if_modified(|state| {
            let mut new = state.clone();
            if let Some(policy) = policy.as_ref().filter(|policy| policy.response_timeout_ms > 0) {
                new.response_timeout_ms = policy.response_timeout_ms;
            }
            new.policy = policy.map(|policy| policy.as_ref().clone());
            (new.calls, new.gateways, new.proxy_port) = (calls, gateways, proxy_port);
            let changed = *state != new;
            *state = new;
            changed
        });
    }

    fn call(&self, cluster: &ClusterName, protocol: &str, port: u16) -> Call {
        let policy = self.neighbours.policy(cluster);
        let told = policy.as_ref().map_or("", |policy| policy.protocol.as_str());
        Call {
            cluster: cluster.to_string(),
            protocol: if protocol.is_empty() { told.to_owned() } else { protocol.to_owned() },
            port: u32::from(port),
            endpoints: self.neighbours.endpoints(cluster, self.saved.instance.as_str()),
            response_timeout_ms: policy.map_or(0, |policy| policy.response_timeout_ms),
        }
    }

    /// Services that the program asked for by name through the forward proxy; of its own organization only.
    fn wanted_by_name(&self) -> Vec<ClusterName> {
        if !self.saved.spec.proxy_env {
            return Vec::new();
        }
        let said = self.sidecar_said.borrow();
        let wanted = said.wants.iter().filter_map(|name| name.parse::<ClusterName>().ok());
        wanted.filter(|cluster| cluster.org == self.saved.cluster.org).take(WANTS_MAX).collect()
    }
}
