//! Behaviour in virtual time.

use super::*;

const DRAIN_MS: Millis = 30_000;

fn policy() -> Policy {
    let timing = Timing { every_ms: 1_000, grace_ms: 10_000, up: 1, down: 3 };
    Policy { drain_ms: DRAIN_MS, drain_min_ms: 500, stop_grace_ms: 5_000, checks: vec![timing], calls: false }
}

/// Answers starts and checks as a world would in which the program is `well` or not.
struct World {
    core: Supervisor,
    now: Millis,
    well: bool,
    starts: u32,
    next_pid: u32,
    log: Vec<(Millis, Action)>,
    views: Vec<View>,
}

impl World {
    fn new() -> Self {
        Self::of(Supervisor::new(policy(), Want::Run))
    }

    fn of(core: Supervisor) -> Self {
        let mut world =
            Self { core, now: 0, well: false, starts: 0, next_pid: 100, log: Vec::new(), views: Vec::new() };
        world.tell(Event::Tick);
        world
    }

    fn tell(&mut self, event: Event) {
        let mut events = std::collections::VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.core.handle(self.now, event) {
                self.log.push((self.now, action));
                events.extend(self.answer(action));
            }
        }
    }

    fn answer(&mut self, action: Action) -> Option<Event> {
        self.next_pid += 1;
        let pid = self.next_pid;
        match action {
            Action::StartProgram => {
                self.starts += 1;
                Some(Event::Started { pid, port: 4000, at_ms: self.now })
            }
            Action::StartSidecar => Some(Event::SidecarStarted { pid }),
            Action::Check { check, run } => {
                let outcome = if self.well { Ok(()) } else { Err("refused".to_owned()) };
                Some(Event::Checked { check, run, outcome })
            }
            Action::Report => {
                self.views.push(self.core.view());
                None
            }
            _ => None,
        }
    }

    /// Lets time pass, with a tick wherever one was asked for.
    fn pass(&mut self, ms: Millis) {
        let end = self.now + ms;
        while let Some(at) = self.core.timeout().filter(|at| *at <= end) {
            assert!(at > self.now || self.now == 0, "a timeout that does not move on: {at}");
            self.now = at.max(self.now);
            self.tell(Event::Tick);
        }
        self.now = end;
    }

    fn listening(&mut self) {
        self.tell(Event::SidecarStatus {
            address: "127.0.0.1:7000".to_owned(),
            drained: false,
            listens: true,
        });
    }

    fn exit(&mut self, status: i32) {
        self.tell(Event::Exited {
            exit: Exit { status, tail: "oh no".to_owned(), ..Exit::default() },
            port_taken: false,
        });
    }

    fn healthy() -> Self {
        let mut world = Self::new();
        world.well = true;
        world.listening();
        world.pass(1_000);
        assert_eq!(world.state(), State::Healthy);
        world
    }

    fn state(&self) -> State {
        self.core.view().state
    }

    fn count(&self, wanted: Action) -> usize {
        self.log.iter().filter(|(_, action)| *action == wanted).count()
    }

    fn last_at(&self, wanted: Action) -> Option<Millis> {
        self.log.iter().rev().find(|(_, action)| *action == wanted).map(|(at, _)| *at)
    }
}

#[test]
fn healthy_needs_the_check_and_the_sidecar() {
    let mut world = World::new();
    world.well = true;
    world.pass(2_000);
    assert_eq!(world.state(), State::Starting);
    assert!(world.core.view().detail.contains("sidecar"));
    world.listening();
    assert_eq!(world.state(), State::Healthy);
    assert_eq!(world.core.view().sidecar_address, "127.0.0.1:7000");
}

#[test]
fn a_late_program_is_given_its_grace_and_no_more() {
    let mut world = World::new();
    world.listening();
    world.pass(9_900);
    assert_eq!(world.state(), State::Starting);
    assert_eq!(world.core.view().detail, "refused");
    world.pass(300);
    assert_eq!(world.state(), State::Unhealthy);
    world.well = true;
    world.pass(1_100);
    assert_eq!(world.state(), State::Healthy);
    assert_eq!(world.starts, 1, "it is not started again for that");
}

#[test]
fn three_failures_in_a_row_make_it_unhealthy() {
    let mut world = World::healthy();
    world.well = false;
    world.pass(2_000);
    assert_eq!(world.state(), State::Healthy);
    world.pass(1_000);
    assert_eq!(world.state(), State::Unhealthy);
    world.well = true;
    world.pass(1_000);
    assert_eq!(world.state(), State::Healthy);
}

#[test]
fn an_exit_is_told_at_once_and_backed_off() {
    let mut world = World::new();
    let mut gaps = Vec::new();
    for _ in 0..10 {
        let exited = world.now;
        world.exit(3);
        let view = world.core.view();
        assert_eq!((view.state, view.last_exit.map(|exit| exit.status)), (State::Exited, Some(3)));
        let starts = world.starts;
        while world.starts == starts {
            world.pass(50);
        }
        gaps.push(world.now - exited);
    }
    assert_eq!(gaps, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000, 10_000]);
    assert_eq!(world.core.view().restarts, 10);
}

#[test]
fn ten_healthy_seconds_forget_earlier_exits() {
    let mut world = World::healthy();
    for _ in 0..5 {
        world.exit(1);
        world.pass(3_300);
    }
    world.pass(10_000);
    assert_eq!(world.state(), State::Healthy);
    world.exit(1);
    let starts = world.starts;
    world.pass(100);
    assert_eq!(world.starts, starts + 1);
}

#[test]
fn a_taken_port_is_tried_again_at_once_but_not_for_ever() {
    let mut world = World::new();
    for attempt in 0..3 {
        world.tell(Event::Exited { exit: Exit { status: 98, ..Exit::default() }, port_taken: true });
        assert_eq!(world.starts, attempt + 2);
        assert_eq!(world.state(), State::Starting);
    }
    world.tell(Event::Exited { exit: Exit { status: 98, ..Exit::default() }, port_taken: true });
    assert_eq!(world.state(), State::Exited);
}

#[test]
fn a_drain_is_told_at_once_and_ends_when_the_sidecar_is_idle() {
    let mut world = World::healthy();
    world.tell(Event::Want(Want::Drain));
    assert_eq!(world.state(), State::Draining);
    assert!(world.core.is_draining());
    let told = world.now;
    assert_eq!(world.last_at(Action::TellSidecar), Some(told));
    world.pass(5_000);
    assert_eq!(world.count(Action::Terminate(Who::Program)), 0, "requests are open");
    world.tell(Event::SidecarStatus { address: String::new(), drained: true, listens: true });
    assert_eq!(world.last_at(Action::Terminate(Who::Program)), Some(world.now));
    assert_eq!(world.count(Action::Terminate(Who::Sidecar)), 0, "it outlives the program");
    world.exit(0);
    assert_eq!(world.last_at(Action::Terminate(Who::Sidecar)), Some(world.now));
    world.tell(Event::SidecarExited("status 0".to_owned()));
    assert_eq!(world.state(), State::Stopped);
    world.pass(60_000);
    assert_eq!((world.starts, world.count(Action::Finished)), (1, 0), "kept until the placement is gone");
    world.tell(Event::Want(Want::Gone));
    assert_eq!(world.count(Action::Finished), 1);
}

#[test]
fn gateways_hear_of_a_drain_before_an_idle_instance_stops() {
    let mut world = World::healthy();
    let told = world.now;
    world.tell(Event::Want(Want::Drain));
    world.tell(Event::SidecarStatus { address: String::new(), drained: true, listens: true });
    world.pass(2_000);
    assert_eq!(world.last_at(Action::Terminate(Who::Program)), Some(told + 500));
}

#[test]
fn a_drain_has_an_end_and_what_ignores_sigterm_is_killed() {
    let mut world = World::healthy();
    let told = world.now;
    world.tell(Event::Want(Want::Drain));
    world.pass(60_000);
    assert_eq!(world.last_at(Action::Terminate(Who::Program)), Some(told + DRAIN_MS));
    let first_kill = world.log.iter().find(|(_, action)| *action == Action::Kill(Who::Program));
    assert_eq!(first_kill.map(|(at, _)| *at), Some(told + DRAIN_MS + 5_000));
}

#[test]
fn a_removed_instance_stops_now() {
    let mut world = World::healthy();
    world.tell(Event::Want(Want::Gone));
    assert_eq!(world.last_at(Action::Terminate(Who::Program)), Some(world.now));
    assert_eq!(world.last_at(Action::Terminate(Who::Sidecar)), Some(world.now));
    world.exit(0);
    assert_eq!(world.count(Action::Finished), 0);
    world.tell(Event::SidecarExited("status 0".to_owned()));
    assert_eq!(world.count(Action::Finished), 1);
    assert!(world.core.timeout().is_none());
}

#[test]
fn a_halt_shortens_the_grace() {
    let mut world = World::healthy();
    world.tell(Event::Want(Want::Gone));
    world.pass(1_000);
    world.tell(Event::Halt { grace_ms: 2_000 });
    let halted = world.now;
    world.pass(2_500);
    let first_kill = world.log.iter().find(|(_, action)| *action == Action::Kill(Who::Program));
    assert_eq!(first_kill.map(|(at, _)| *at), Some(halted + 2_000));
}

#[test]
fn a_crashed_sidecar_starts_at_once_and_then_later_and_later() {
    let mut world = World::healthy();
    world.tell(Event::SidecarExited("signal 9".to_owned()));
    assert_eq!(world.count(Action::StartSidecar), 2);
    assert_eq!(world.state(), State::Unhealthy);
    assert!(world.core.view().detail.contains("signal 9"));
    world.tell(Event::SidecarExited("signal 9".to_owned()));
    assert_eq!(world.count(Action::StartSidecar), 2);
    world.pass(100);
    assert_eq!(world.count(Action::StartSidecar), 3);
    world.listening();
    assert_eq!(world.state(), State::Healthy);
}

#[test]
fn an_adopted_instance_stays_healthy_unless_a_check_says_otherwise() {
    let left = Adopted {
        program: Some((7, 4000, 1)),
        healthy: true,
        sidecar: Some((8, "127.0.0.1:7000".to_owned())),
        restarts: 2,
        last_exit: None,
    };
    let core = Supervisor::adopt(policy(), Want::Run, 0, left);
    let mut world = World::of(core);
    assert!(world.views.iter().all(|view| view.state == State::Healthy), "{:?}", world.views);
    assert_eq!((world.starts, world.core.view().pid, world.core.view().restarts), (0, 7, 2));
    world.pass(4_000);
    assert_eq!(world.state(), State::Unhealthy);
}

#[test]
fn answers_about_an_earlier_start_are_dropped() {
    let mut world = World::new();
    world.exit(1);
    world.pass(100);
    world.listening();
    world.tell(Event::Checked { check: 0, run: 1, outcome: Ok(()) });
    assert_eq!(world.state(), State::Starting);
    world.tell(Event::Checked { check: 0, run: 2, outcome: Ok(()) });
    assert_eq!(world.state(), State::Healthy);
}

#[test]
fn a_drained_instance_that_is_wanted_again_runs_again() {
    let mut world = World::healthy();
    world.tell(Event::Want(Want::Drain));
    world.tell(Event::Want(Want::Run));
    assert_eq!(world.state(), State::Healthy);
    assert!(!world.core.is_draining());
    world.pass(60_000);
    assert_eq!(world.count(Action::Terminate(Who::Program)), 0);
}

#[test]
fn nothing_is_reported_twice() {
    let mut world = World::healthy();
    world.pass(30_000);
    world.listening();
    for pair in world.views.windows(2) {
        assert_ne!(pair[0], pair[1]);
    }
}

#[test]
fn a_program_that_calls_waits_for_its_sidecar() {
    let mut world = World::of(Supervisor::new(Policy { calls: true, ..policy() }, Want::Run));
    world.well = true;
    let said =
        |listens| Event::SidecarStatus { address: "127.0.0.1:7000".to_owned(), drained: false, listens };
    world.tell(said(false));
    world.pass(5_000);
    assert_eq!((world.starts, world.state()), (0, State::Starting));
    assert!(world.core.view().detail.contains("sidecar"));
    world.tell(said(true));
    world.pass(1_000);
    assert_eq!((world.starts, world.state()), (1, State::Healthy));
    // Without its sidecar it is not started again, and no time is spent on it.
    world.tell(Event::SidecarExited("signal 9".to_owned()));
    world.exit(1);
    world.pass(5_000);
    assert_eq!(world.starts, 1);
    world.tell(said(true));
    world.pass(1_000);
    assert_eq!((world.starts, world.state()), (2, State::Healthy));
}
