//! From what is known of an instance to the record that is published.

use crate::state::Saved;
use crate::supervisor::{Exit, State, View};
use atoll_wire::record;

/// The body of the INSTANCE record.
pub(crate) fn record(saved: &Saved, view: &View) -> record::Instance {
    record::Instance {
        instance: saved.instance.to_string(),
        cluster: saved.cluster.to_string(),
        revision: saved.revision.clone(),
        state: wire_state(view.state).into(),
        sidecar_address: view.sidecar_address.clone(),
        pid: view.pid,
        port: u32::from(view.port),
        restarts: view.restarts,
        started_ms: view.started_ms,
        last_exit: view.last_exit.as_ref().map(exit),
        detail: view.detail.clone(),
        sidecar_pid: view.sidecar_pid,
        labels: saved.spec.labels.clone(),
    }
}

fn wire_state(state: State) -> record::instance::State {
    match state {
        State::Starting => record::instance::State::Starting,
        State::Healthy => record::instance::State::Healthy,
        State::Unhealthy => record::instance::State::Unhealthy,
        State::Draining => record::instance::State::Draining,
        State::Exited => record::instance::State::Exited,
        State::Stopped => record::instance::State::Stopped,
    }
}

fn exit(exit: &Exit) -> record::Exit {
    record::Exit {
        status: exit.status,
        signal: exit.signal,
        output_tail: exit.tail.clone(),
        at_ms: exit.at_ms,
        start_error: exit.start_error.clone(),
    }
}
