//! What is shown: a pure function of the news.

use std::collections::{BTreeMap, VecDeque};

use super::follow::{Known, News};
use crate::client::events::{Event, Snapshot, What};
use crate::client::words::{micros, sentence};
use crate::report::printable;
use crate::sidecar::documents::{RunDocument, ServiceSummary};

/// Lines of a run that are kept: more than a screen has.
const MOST_LINES: usize = 256;

/// All that is known.
#[derive(Debug, Default)]
pub(super) struct View {
    /// By their names.
    pub(super) services: BTreeMap<String, ServiceView>,
    /// Why there is no sidecar at the moment.
    pub(super) gone: Option<String>,
    /// How often there was another sidecar.
    pub(super) lives: u32,
    /// Kernel events that were lost since this began, of no service in particular.
    pub(super) lost: u64,
    /// Events that this reader was too slow for; `None`: nobody knows how many.
    pub(super) missed: Option<Option<u64>>,
    /// The service whose details are shown, when somebody chose one.
    chosen: Option<String>,
    /// The one that something happened to last.
    active: Option<String>,
}

/// One service.
#[derive(Debug, Default)]
pub(super) struct ServiceView {
    pub(super) tier: String,
    /// Why the tier is not a better one.
    pub(super) shortfall: Option<String>,
    pub(super) snapshot: Option<Snapshot>,
    pub(super) run: Option<RunView>,
    /// Kernel events that were lost since this began.
    pub(super) lost: u64,
}

/// A run as it goes.
#[derive(Debug)]
pub(super) struct RunView {
    pub(super) id: String,
    pub(super) command: String,
    began_ns: u64,
    last_seq: u64,
    /// Nanoseconds from its beginning, and what happened.
    pub(super) lines: VecDeque<(u64, String)>,
    /// How it ended.
    pub(super) end: Option<End>,
}

/// The end of a run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) outcome: String,
    pub(super) took: String,
    pub(super) good: bool,
}

impl View {
    pub(super) fn take(&mut self, news: News) {
        match news {
            News::Known(known) => self.know(known),
            News::Told(told) => {
                if let Some(event) = Event::parse(&told.json) {
                    self.event(&event);
                }
            }
            News::Lost(error) => self.gone = Some(printable(&error.to_string())),
        }
    }

    fn know(&mut self, known: Known) {
        if self.gone.take().is_some() {
            self.lives += 1;
        }
        // What the list does not name is guarded no longer.
        self.services.retain(|name, _| known.services.iter().any(|service| service.name == *name));
        for ServiceSummary { name, tier, shortfall, .. } in known.services {
            let service = self.services.entry(name).or_default();
            (service.tier, service.shortfall) = (tier, shortfall);
        }
        for run in known.runs {
            self.run(&run);
        }
    }

    fn run(&mut self, document: &RunDocument) {
        let Some(service) = self.services.get_mut(&document.service) else { return };
        let events = document.events.iter();
        for event in events.filter_map(|event| serde_json::from_value::<Event>(event.clone()).ok()) {
            service.in_run(&document.run, &event, Some(&document.command));
        }
    }

    fn event(&mut self, event: &Event) {
        let Some(name) = &event.service else {
            match &event.what {
                What::EventsLost { count } => self.lost += count,
                What::Lagged { count } => {
                    let before = self.missed.unwrap_or(Some(0));
                    self.missed = Some(before.zip(*count).map(|(before, count)| before + count));
                }
                What::TierChanged { tier } => {
                    self.services.values_mut().for_each(|service| tier.clone_into(&mut service.tier));
                }
                _ => {}
            }
            return;
        };
        let began = matches!(event.what, What::RunStarted { .. });
        if event.run.is_some() && !began && !self.services.contains_key(name) {
            // It is guarded no longer, and its last run goes on.
            return;
        }
        if event.what == (What::ServiceRemoved {}) {
            self.services.remove(name);
            return;
        }
        let service = self.services.entry(name.clone()).or_default();
        match &event.what {
            What::Snapshot(snapshot) => {
                snapshot.tier.clone_into(&mut service.tier);
                service.snapshot = Some((**snapshot).clone());
            }
            What::TierChanged { tier } => tier.clone_into(&mut service.tier),
            What::EventsLost { count } => service.lost += count,
            _ => {}
        }
        if let Some(run) = &event.run {
            service.in_run(run, event, None);
            self.active = Some(name.clone());
        }
    }

    /// The service whose details are shown.
    pub(super) fn selected(&self) -> Option<(usize, &str, &ServiceView)> {
        let wanted = self.chosen.as_ref().or(self.active.as_ref());
        let index = wanted.and_then(|wanted| self.services.keys().position(|name| name == wanted));
        let index = index.unwrap_or(0);
        self.services.iter().nth(index).map(|(name, service)| (index, name.as_str(), service))
    }

    /// Shows the details of the next service, or of the one before.
    pub(super) fn choose(&mut self, next: bool) {
        let Some((index, ..)) = self.selected() else { return };
        let last = self.services.len().saturating_sub(1);
        let index = if next { (index + 1).min(last) } else { index.saturating_sub(1) };
        self.chosen = self.services.keys().nth(index).cloned();
    }
}

impl ServiceView {
    pub(super) fn verdict(&self) -> &str {
        self.snapshot.as_ref().map_or("unknown", |snapshot| &snapshot.verdict)
    }

    fn in_run(&mut self, id: &str, event: &Event, command: Option<&str>) {
        if self.run.as_ref().is_none_or(|run| run.id != id) {
            let command = match &event.what {
                What::RunStarted { command } => command.as_str(),
                // It began before this did.
                _ => command.unwrap_or("run"),
            };
            // The document of an older run says nothing new.
            if self.run.as_ref().is_some_and(|run| event.mono_ns < run.began_ns) {
                return;
            }
            self.run = Some(RunView {
                id: id.to_owned(),
                command: command.to_owned(),
                began_ns: event.mono_ns,
                last_seq: 0,
                lines: VecDeque::new(),
                end: None,
            });
        }
        if let Some(run) = &mut self.run {
            run.take(event);
        }
    }
}

impl RunView {
    /// Events may come twice, from the stream and from the document of the run.
    fn take(&mut self, event: &Event) {
        if event.seq <= self.last_seq {
            return;
        }
        self.last_seq = event.seq;
        if let What::RunFinished { outcome, exit_code, took_us, .. } = &event.what {
            let outcome = printable(&outcome.replace('_', " "));
            self.end = Some(End { outcome, took: micros(*took_us), good: *exit_code == 0 });
        }
        // Probes come in dozens and say what the verdict says.
        let probe = matches!(&event.what, What::RunStep(step) if step.step == "probed");
        if !probe {
            self.lines.push_back((event.mono_ns.saturating_sub(self.began_ns), sentence(event)));
        }
        if self.lines.len() > MOST_LINES {
            self.lines.pop_front();
        }
    }
}
