//! Reads at the hosts, each at the pace of whoever reads here.

use super::super::{Api, auth};
use super::Asked;
use super::merge::Merge;
use crate::attach::{Answers, AskError, Place};
use crate::caller::Caller;
use crate::store::objects::Placement;
use atoll_model::InstanceId;
use atoll_wire::node::{LogLine, LogLines, NodeMessage, ReadLogs, node_message::Answer};
use axum::response::sse::Event;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// Instances of one stream. Each has at most some 100 KiB of lines here.
const INSTANCES_MAX: usize = 128;
/// Longest wait for a host's next word while the past is told.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// How often the instances are looked at anew while they are followed: a deploy replaces them.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Of an instance that was not there when the stream began all is wanted.
const TAIL_OF_NEW: u32 = 10_000;

/// One thing that is told.
#[derive(Debug)]
pub(super) struct Said {
    name: &'static str,
    fields: Value,
}

impl Said {
    pub(super) fn event(&self) -> Event {
        Event::default().event(self.name).data(self.fields.to_string())
    }
}

/// What is known of an instance that was met.
#[derive(Debug)]
struct Met {
    placement: Placement,
    state: State,
    /// Where its last line ended.
    position: Option<u64>,
    /// It could not be read, this often in a row.
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Read,
    /// Its host can't be asked now.
    Away,
    /// There is no more.
    Over,
}

/// What came of asking.
enum Heard {
    Answer(NodeMessage),
    LineBroke,
    Nothing,
}

type Asking = BoxFuture<'static, (InstanceId, Answers, Heard)>;

/// A stream of what instances wrote.
pub(super) struct Reader {
    api: Api,
    caller: Caller,
    asked: Asked,
    met: BTreeMap<InstanceId, Met>,
    merge: Merge,
    asking: FuturesUnordered<Asking>,
    /// Of those whose lines wait in `merge`.
    idle: BTreeMap<InstanceId, Answers>,
    ready: VecDeque<Said>,
    look: Interval,
    ended: bool,
    _place: Place,
}

impl Reader {
    pub(super) fn start(api: Api, caller: Caller, asked: Asked, place: Place) -> Self {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.reset();
        let mut reader = Self {
            api,
            caller,
            asked,
            met: BTreeMap::new(),
            merge: Merge::default(),
            asking: FuturesUnordered::new(),
            idle: BTreeMap::new(),
            ready: VecDeque::new(),
            look,
            ended: false,
            _place: place,
        };
        let placements = reader.asked.placements(&reader.api);
        if placements.len() > INSTANCES_MAX {
            let detail = format!(
                "there are {} instances, of which {INSTANCES_MAX} are read; narrow them by app, service or region",
                placements.len()
            );
            reader.ready.push_back(Said { name: "error", fields: json!({ "detail": detail }) });
        }
        for placement in placements.into_iter().take(INSTANCES_MAX) {
            reader.meet(placement, reader.asked.tail, true);
        }
        reader
    }

    /// What is told next; nothing at the end.
    pub(super) async fn next(&mut self) -> Option<Said> {
        loop {
            if let Some(said) = self.ready.pop_front() {
                return Some(said);
            }
            if let Some((instance, line)) = self.merge.next() {
                return Some(self.line(&instance, line));
            }
            if self.ended {
                return None;
            }
            if self.is_over() {
                self.ended = true;
                return Some(Said { name: "end", fields: json!({ "instances": self.met.len() }) });
            }
            tokio::select! {
                Some((instance, answers, heard)) = self.asking.next() => self.take(instance, answers, heard),
                _ = self.look.tick(), if self.asked.follow => self.look_again(),
            }
        }
    }

    /// Everything was told. Who follows one instance is told when it has ended.
    fn is_over(&self) -> bool {
        let quiet = self.asking.is_empty() && self.idle.is_empty();
        match (self.asked.follow, &self.asked.instance) {
            (false, _) => quiet,
            (true, None) => false,
            (true, Some(_)) => quiet && self.met.values().all(|met| met.state == State::Over),
        }
    }

    fn line(&mut self, instance: &InstanceId, line: LogLine) -> Said {
        let mut fields = self.who(instance);
        if line.at_ms > 0 {
            fields.insert("at_ms".to_owned(), line.at_ms.into());
        }
        fields.insert("position".to_owned(), line.position.into());
        fields.insert("line".to_owned(), line.text.into());
        if line.cut {
            fields.insert("cut".to_owned(), true.into());
        }
        if let Some(met) = self.met.get_mut(instance) {
            met.position = Some(line.position);
        }
        if !self.merge.has(instance) {
            match self.idle.remove(instance) {
                Some(answers) => self.ask(instance.clone(), answers),
                None => self.finish(instance),
            }
        }
        Said { name: "line", fields: fields.into() }
    }

    /// Begins to read an instance.
    fn meet(&mut self, placement: Placement, tail: u32, past: bool) {
        let instance = placement.instance.clone();
        let position = self.met.get(&instance).and_then(|met| met.position);
        let failures = self.met.get(&instance).map_or(0, |met| met.failures);
        let ask = ReadLogs {
            instance: instance.to_string(),
            tail_lines: tail,
            follow: self.asked.follow,
            since_ms: self.asked.since_ms,
            contains: self.asked.grep.clone(),
            after: position,
            window: 0,
        };
        let answers = self.api.attached.read_logs(&placement.host, ask);
        self.met.insert(instance.clone(), Met { placement, state: State::Read, position, failures });
        self.merge.join(instance.clone(), past);
        match answers {
            Ok(answers) => self.ask(instance, answers),
            Err(error) => self.fail(&instance, &error),
        }
    }

    /// Waits for an instance's next answer.
    fn ask(&self, instance: InstanceId, mut answers: Answers) {
        let within = (!self.asked.follow).then_some(ANSWER_WAIT);
        self.asking.push(Box::pin(async move {
            let heard = match within {
                Some(within) => timeout(within, answers.next()).await,
                None => Ok(answers.next().await),
            };
            let heard = match heard {
                Ok(Some(message)) => Heard::Answer(message),
                Ok(None) => Heard::LineBroke,
                Err(_elapsed) => Heard::Nothing,
            };
            (instance, answers, heard)
        }));
    }

    fn take(&mut self, instance: InstanceId, answers: Answers, heard: Heard) {
        match heard {
            Heard::Nothing => self.fail(&instance, &AskError::Timeout),
            Heard::LineBroke => self.fail(&instance, &AskError::Gone),
            Heard::Answer(NodeMessage { answer: Some(Answer::Error(error)), .. }) => {
                self.fail(&instance, &AskError::Node(error));
            }
            Heard::Answer(NodeMessage { answer: Some(Answer::LogLines(lines)), last, .. }) => {
                self.take_lines(&instance, lines);
                if !last && self.merge.has(&instance) {
                    self.idle.insert(instance, answers);
                } else if !last {
                    self.ask(instance, answers);
                } else {
                    if let Some(met) = self.met.get_mut(&instance) {
                        met.state = State::Over;
                    }
                    self.merge.release(&instance);
                    self.finish(&instance);
                }
            }
            Heard::Answer(_) => {
                let error = "its host does not answer such questions; is it of an older version?";
                self.fail(&instance, &AskError::Node(error.to_owned()));
            }
        }
    }

    fn take_lines(&mut self, instance: &InstanceId, lines: LogLines) {
        if lines.lost > 0 {
            let mut fields = self.who(instance);
            fields.insert("count".to_owned(), lines.lost.into());
            self.ready.push_back(Said { name: "dropped", fields: fields.into() });
        }
        self.merge.push(instance, lines.lines);
        if lines.caught_up {
            self.merge.release(instance);
        }
        if let Some(met) = self.met.get_mut(instance) {
            met.failures = 0;
        }
    }

    /// Says that an instance has ended, once its last line was told.
    fn finish(&mut self, instance: &InstanceId) {
        let over = self.met.get(instance).is_some_and(|met| met.state == State::Over);
        if over && !self.merge.has(instance) {
            self.merge.leave(instance);
            if self.asked.follow {
                self.ready.push_back(Said { name: "gone", fields: self.who(instance).into() });
            }
        }
    }

    fn fail(&mut self, instance: &InstanceId, error: &AskError) {
        self.merge.release(instance);
        let fields = self.who(instance);
        let Some(met) = self.met.get_mut(instance) else { return };
        met.state = State::Away;
        met.failures += 1;
        // A host that was given an instance a moment ago may not have begun with it.
        let early = self.asked.follow && matches!(error, AskError::Node(_));
        if met.failures == if early { 3 } else { 1 } {
            let mut fields = fields;
            fields.insert("host".to_owned(), met.placement.host.as_str().into());
            fields.insert("detail".to_owned(), error.to_string().into());
            self.ready.push_back(Said { name: "error", fields: fields.into() });
        }
    }

    /// New instances join, those that could not be read are tried again, those that are no more leave.
    fn look_again(&mut self) {
        if !auth::is_good(&self.api.store, &self.caller) {
            self.ended = true;
            return;
        }
        let placements = self.asked.placements(&self.api);
        let is_placed = |instance: &InstanceId| placements.iter().any(|placed| placed.instance == *instance);
        let left = self.met.iter().filter(|(instance, met)| met.state != State::Read && !is_placed(instance));
        let left: Vec<(InstanceId, State)> = left.map(|(id, met)| (id.clone(), met.state)).collect();
        for (instance, state) in left {
            if self.merge.has(&instance) {
                continue;
            }
            if state == State::Away {
                self.met.entry(instance.clone()).and_modify(|met| met.state = State::Over);
                self.finish(&instance);
            }
            if self.asked.instance.is_none() {
                self.met.remove(&instance);
            }
        }
        for placement in placements {
            match self.met.get(&placement.instance).map(|met| met.state) {
                None if self.met.len() < INSTANCES_MAX => self.meet(placement, TAIL_OF_NEW, false),
                Some(State::Away) if !self.merge.has(&placement.instance) => {
                    let tail = self.asked.tail;
                    self.meet(placement, tail, false);
                }
                None | Some(State::Away | State::Read | State::Over) => {}
            }
        }
    }

    fn who(&self, instance: &InstanceId) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("instance".to_owned(), instance.as_str().into());
        if let Some(Met { placement, .. }) = self.met.get(instance) {
            fields.insert("app".to_owned(), placement.cluster.app.as_str().into());
            fields.insert("service".to_owned(), placement.cluster.service.as_str().into());
            fields.insert("region".to_owned(), placement.region.as_str().into());
        }
        fields
    }
}
